"""The bench of overload runs, and its table has numbers."""

from __future__ import annotations

import re

import pytest

from bench.ran import ran


@pytest.mark.long
def test_it_prints_a_row_for_each_factor() -> None:
    """A short run; under ten times the capacity most are refused, nothing else happens to anybody, and nothing dies."""
    words = ["--seconds", "8", "--tokens", "8", "--slo", "10", "--factors", "10"]
    printed = ran("overload", *words)
    (row,) = re.findall(r"^\| 10 \|.*$", printed, re.MULTILINE)
    _, offered, accepted, refused, others, *_, lost = (cell.strip() for cell in row.strip("| ").split("|"))

    assert int(accepted) > 0
    assert int(refused) > int(accepted)
    assert int(accepted) + int(refused) == int(offered)
    assert (others, lost) == ("0", "0")
