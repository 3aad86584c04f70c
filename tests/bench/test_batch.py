"""The bench of batches runs, and its table has numbers."""

from __future__ import annotations

import re

import pytest

from bench.ran import ran


@pytest.mark.long
def test_it_prints_a_row_for_each_share() -> None:
    """A short run with the simulated engine: the batch got something by itself, and nothing failed."""
    words = ["--simulated", "--seconds", "6", "--turns", "1", "--shares", "0.2", "--lines", "500"]
    printed = ran("batch", *words)
    rate = re.search(r"by itself ([\d.]+) lines/s", printed)
    (row,) = re.findall(r"^\| 20% \|.*$", printed, re.MULTILINE)

    assert rate is not None
    assert float(rate[1]) > 0
    assert int(row.split("|")[2]) > 0
