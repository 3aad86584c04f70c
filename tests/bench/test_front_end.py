"""The bench of the front end runs, and its page has numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.ran import ran


@pytest.mark.slow
def test_it_writes_a_row_for_each_load_and_a_plot(tmp_path: Path) -> None:
    """A short run of ours before the engine that computes nothing; each answer has the tokens that were asked for."""
    words = ["--engine", "fake", "--only", "appliance", "--pairs", "1", "--seconds", "1", "--levels", "16", "short"]
    printed = ran("front_end", *words, "--into", str(tmp_path / "front-end.json"))
    page = (tmp_path / "front-end.md").read_text()
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| (?:16|64 whole) .*$", page, re.MULTILINE)]

    assert page in printed
    assert "had the wrong length: 0." in page
    assert len(rows) == 2
    assert all(float(cell.replace(",", "")) > 0 for _, _, *cells in rows for cell in cells if cell != "-")
    assert (tmp_path / "front-end.svg").read_text().count("<title>") == 2


@pytest.mark.long
def test_it_writes_what_long_prompts_do_to_others(tmp_path: Path) -> None:
    """A short run of ours: streams and probes go on, and each long prompt is answered, refused, or still waiting."""
    words = ["--engine", "prompts", "--only", "appliance", "--pairs", "1", "--seconds", "4"]
    page = ran("front_end", *words, "--into", str(tmp_path / "front-end.json"))
    quiet, loaded = re.findall(r"^\| (quiet|20 long prompts/s) \| appliance \| (.*) \|$", page, re.MULTILINE)

    assert "had the wrong length: 0." in page
    assert (quiet[0], loaded[0]) == ("quiet", "20 long prompts/s")
    assert all(float(cell.replace(",", "")) > 0 for cell in loaded[1].split(" | ")[:7])


@pytest.mark.long
def test_it_measures_several_front_ends_of_one_engine(tmp_path: Path) -> None:
    """A short run of ours: each of two front ends has its share of the streams, and no answer is cut."""
    words = ["--engine", "workers", "--only", "appliance", "--pairs", "1", "--seconds", "2", "--levels", "2"]
    page = ran("front_end", *words, "--into", str(tmp_path / "front-end.json"))

    assert "had the wrong length: 0." in page
    assert re.search(r"^\| 2 \| appliance \| [1-9]", page, re.MULTILINE)
