"""How much of a text is read that is much too long for its model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.engines.vllm.tokenization import cut_long_text


class Tokenizer:
    """Each word is a token; it counts the characters that it reads."""

    truncation_side = "right"

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, text: str, *, max_length: int, **_: Any) -> dict[str, list[int]]:
        self.read += len(text)
        return {"input_ids": [1] * min(max_length, len(text.split()))}


def _shortened(tokenizer: Tokenizer, text: str, side: str | None = None, most: int | None = 1000) -> str:
    params: Any = SimpleNamespace(max_input_tokens=most, truncation_side=side)
    read: Any = tokenizer
    return cut_long_text(read, text, params)


def test_of_megabytes_a_beginning_is_read_that_is_too_long_already() -> None:
    """Its length goes by what the model takes, not by what was sent."""
    tokenizer, text = Tokenizer(), "word " * 2_000_000

    short = _shortened(tokenizer, text)

    assert text.startswith(short)
    assert 1000 < len(short.split()) < 2000
    assert tokenizer.read < 10_000


def test_a_long_text_of_few_tokens_stays_whole() -> None:
    """Spaces may be no tokens at all."""
    tokenizer, text = Tokenizer(), " " * 100_000 + "word"

    assert _shortened(tokenizer, text) == text


@pytest.mark.parametrize(
    ("text", "side", "most"),
    [("word " * 2_000, None, 1000), ("word " * 100_000, "left", 1000), ("word " * 100_000, None, None)],
)
def test_what_may_be_wanted_whole_is_not_read_twice(text: str, side: str | None, most: int | None) -> None:
    """A text of a usual length, one whose end is kept, and one that nothing bounds."""
    tokenizer = Tokenizer()

    assert _shortened(tokenizer, text, side, most) == text
    assert tokenizer.read == 0
