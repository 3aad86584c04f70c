"""The bench of number formats runs, and its figures are those of a model that can write."""

from __future__ import annotations

import math
import re

import pytest

from bench.quality import FORMATS, perplexity
from bench.ran import ran


def test_perplexity_is_that_of_the_mean_token() -> None:
    """A model that finds each token one of four alike has a perplexity of four."""
    assert perplexity([math.log(1 / 4)] * 3) == pytest.approx(4)


@pytest.mark.long
def test_both_formats_know_the_language() -> None:
    """A short run: float32 and bfloat16 agree on a fixed text within a few percent, far below chance."""
    printed = ran("quality", "--tokens", "8", "--rounds", "1")
    found = {name: float(re.search(rf"{name}\D+(\d+\.\d+)", printed)[1]) for name in FORMATS}  # type: ignore[index]

    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.05)
    assert all(1 < each < 100 for each in found.values())
