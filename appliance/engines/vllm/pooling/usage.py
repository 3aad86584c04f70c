"""What a call cost, in tokens."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from appliance.engines.vllm.pooling.batch import Encoded


class PoolingUsage(msgspec.Struct):
    """Tokens that were computed, special ones among them, cut-off ones not; pooling makes none of its own."""

    prompt_tokens: int
    total_tokens: int


def usage_of(encoded: Iterable[Encoded]) -> PoolingUsage:
    """The tokens of all texts together."""
    tokens = sum(len(each.tokens) for each in encoded)
    return PoolingUsage(tokens, tokens)
