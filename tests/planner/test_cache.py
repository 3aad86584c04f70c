"""The KV cache of a plan: bytes of a block, blocks of a text, tokens in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.planner.hardware import Hardware, named_hardware
from appliance.planner.kv_cache import KvCache
from appliance.planner.memory import EngineRequirements, MemoryEstimate
from appliance.planner.model_config import Architecture, AttentionKind
from appliance.planner.model_info import ModelInfo

BLOCK, IN_FLIGHT = 16, 100
DENSE: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}
MIXED = {
    **DENSE,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}


def _cache(config: Mapping[str, Any], dtype: str = "auto", **layout: int) -> KvCache:
    return KvCache(Architecture(config).attention, LayoutConfig(**layout), BLOCK, 2, IN_FLIGHT, dtype)


@pytest.mark.parametrize(("ranks", "heads"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_a_block_has_the_heads_of_a_rank(ranks: int, heads: int) -> None:
    """Keys and values of 16 tokens, 8 numbers in each head, 2 bytes each, in 6 layers; a head is never cut."""
    cache = _cache(DENSE, tensor_parallel=ranks)

    assert cache.block_bytes == (6 * BLOCK * heads * 2 * 8 * 2,)
    assert cache.token_bytes == cache.block_bytes[0] // BLOCK


def test_a_sequence_takes_whole_blocks() -> None:
    """17 tokens take two blocks of 16."""
    cache = _cache(DENSE)

    assert [cache.blocks_of(tokens) for tokens in (1, 16, 17, 33)] == [1, 1, 2, 3]


def test_windows_limit_the_blocks_of_a_sequence() -> None:
    """Of 6 layers in three groups of 2, one group keeps all tokens, two the window and what is under way."""
    cache = _cache(MIXED)
    window = -(-(64 - 1 + IN_FLIGHT) // BLOCK) + 1

    assert len(cache.groups) == 3
    assert cache.block_bytes == (2 * BLOCK * 4 * 2 * 8 * 2,)
    assert cache.blocks_of(1600) == 100 + 2 * window
    assert cache.blocks_of(16) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("machine", "stages", "batches", "tokens"),
    [("cpu", 1, 1, 2048), ("cpu", 2, 2, 4096), ("h100-80gb", 1, 2, 8192), ("h100-80gb", 2, 3, 8192)],
)
def test_the_number_of_concurrent_batches_is_that_of_vllm(machine: str, stages: int, batches: int, tokens: int) -> None:
    """One for each stage, and on GPUs another one, which is prepared meanwhile."""
    hardware = Hardware("cpu", 1, 1 << 34, is_cpu=True) if machine == "cpu" else named_hardware(machine)
    layout = LayoutConfig(pipeline_parallel=stages)

    info = ModelInfo(Architecture(DENSE), [], "config.json alone", 1, 0, 0, is_local=True)
    estimate = MemoryEstimate(info, layout, EngineRequirements(EngineConfig()), hardware)

    assert estimate.cache.in_flight == batches * tokens


def test_latent_attention_caches_one_vector_on_every_rank() -> None:
    """The latent vector and the rotated part of the keys, whatever the number of heads and ranks."""
    latent = {**DENSE, "model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}

    one, eight = _cache(latent), _cache(latent, tensor_parallel=8)

    assert one.token_bytes == 6 * (512 + 64) * 2
    assert eight.block_bytes == one.block_bytes


def test_smaller_types_take_less() -> None:
    """In FP8, a token takes half of what it takes in 16 bits."""
    assert _cache(DENSE, "fp8").token_bytes * 2 == _cache(DENSE).token_bytes


def test_the_smallest_stage_decides_how_many_blocks_there_are() -> None:
    """Stages of 3 and 3 layers: half a block each, and the rank with less memory counts."""
    cache = _cache(DENSE, pipeline_parallel=2)
    half = _cache(DENSE).block_bytes[0] // 2

    assert cache.block_bytes == (half, half)
    assert cache.blocks_in([half * 10, half * 7 + 1]) == 7


def test_context_parallel_ranks_need_fewer_blocks() -> None:
    """With decode context parallel 2, a block of each rank holds 32 tokens of a text."""
    cache = _cache(DENSE, tensor_parallel=8, decode_context_parallel=2)

    assert cache.blocks_of(64) == 2


def test_the_longest_sequence_leaves_one_block() -> None:
    """Of 10 blocks of 16 tokens, one is never used; the limit of the model bounds it as well."""
    cache = _cache(DENSE)

    assert cache.longest(10, 100_000) == 9 * BLOCK
    assert cache.longest(10, 100) == 100
    assert cache.longest(1, 100) == 0


def test_an_encoder_has_no_cache() -> None:
    """It has no groups, and no text takes a block."""
    cache = _cache({**DENSE, "model_type": "bert"})

    assert (cache.groups, cache.blocks_of(100), cache.token_bytes) == ((), 0, 0)


@pytest.mark.parametrize(
    ("config", "sliding"),
    [
        ({"model_type": "gemma3_text", "sliding_window": 512}, 5),
        ({"model_type": "gemma2", "sliding_window": 512}, 3),
        ({"model_type": "mistral", "sliding_window": 512}, 6),
        ({"model_type": "mistral", "sliding_window": None}, 0),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False}, 0),
    ],
)
def test_which_layers_have_sliding_attention(config: dict[str, Any], sliding: int) -> None:
    """As each kind of model does where its config does not list its layers."""
    kinds = [each.kind for each in Architecture({**DENSE, **config}).attention]

    assert kinds.count(AttentionKind.SLIDING) == sliding
