"""
The bench of the proxy runs, and its table has numbers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_prints_a_row_for_each_subject() -> None:
    """
    A short run of what needs no installation.
    """
    words = ["--seconds", "0.3", "--requests", "200", "--only", "appliance"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.proxy", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=200,
    )
    (row,) = re.findall(r"^\| appliance .*$", done.stdout, re.MULTILINE)
    _, start, added, rate, *_, sizes, faults = (cell.strip() for cell in row.strip("| ").split("|"))

    assert float(start) > 0
    assert re.fullmatch(r"-?[\d.]+ / -?[\d.]+", added)
    assert float(rate) > 0
    assert re.fullmatch(r"\d+ @20, \d+ @200", sizes)
    assert faults == "0"
