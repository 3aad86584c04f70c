"""The bench of the proxy runs, and its table has numbers."""

from __future__ import annotations

import re

import pytest

from bench.ran import ran


@pytest.mark.slow
def test_it_prints_a_row_for_each_subject() -> None:
    """A short run of what needs no installation."""
    words = ["--seconds", "0.3", "--requests", "200", "--only", "appliance"]
    printed = ran("proxy", *words)
    (row,) = re.findall(r"^\| appliance .*$", printed, re.MULTILINE)
    _, start, added, rate, *_, sizes, faults = (cell.strip() for cell in row.strip("| ").split("|"))

    assert float(start) > 0
    assert re.fullmatch(r"-?[\d.]+ / -?[\d.]+", added)
    assert float(rate) > 0
    assert re.fullmatch(r"\d+ @20, \d+ @200", sizes)
    assert faults == "0"
