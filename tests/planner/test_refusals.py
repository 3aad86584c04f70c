"""Layouts that cannot work are known from a model's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from appliance.config.layout import LayoutConfig
from appliance.planner.layouts import constraint_violations
from appliance.planner.model_config import Architecture

Published = Mapping[str, Mapping[str, Any]]

VIOLATIONS = [
    ("Llama-3.1-70B", {"tensor_parallel": 6}, "layout.tensor_parallel", "64 attention heads"),
    ("Llama-3.1-70B", {"tensor_parallel": 128}, "layout.tensor_parallel", "64 attention heads"),
    ("SmolLM2-135M", {"tensor_parallel": 2}, "layout.tensor_parallel", "9 attention heads"),
    ("SmolLM2-135M", {"tensor_parallel": 9}, "layout.tensor_parallel", "feed-forward"),
    ("Qwen2.5-0.5B", {"tensor_parallel": 4}, "layout.tensor_parallel", "14 attention heads"),
    ("Qwen2.5-0.5B", {"tensor_parallel": 7}, "layout.tensor_parallel", "2 heads of keys"),
    ("Qwen2.5-0.5B", {"tensor_parallel": 14}, "layout.tensor_parallel", "feed-forward layers of width 4864"),
    ("Qwen2.5-7B", {"tensor_parallel": 8}, "layout.tensor_parallel", "28 attention heads"),
    ("Phi-4", {"tensor_parallel": 8}, "layout.tensor_parallel", "10 heads of keys"),
    ("Phi-4", {"tensor_parallel": 4}, "layout.tensor_parallel", "10 heads of keys"),
    ("Mixtral-8x7B", {"data_parallel": 5}, "layout.tensor_parallel", "experts of width 14336"),
    ("Mixtral-8x7B", {"data_parallel": 16, "expert_parallel": True}, "layout.expert_parallel", "8 experts"),
    ("Llama-3.1-8B", {"expert_parallel": True}, "layout.expert_parallel", "no experts"),
    ("Llama-3.1-8B", {"pipeline_parallel": 33}, "layout.pipeline_parallel", "32 layers"),
    ("BERT-base", {"pipeline_parallel": 2}, "layout.pipeline_parallel", "encoders"),
    ("BERT-base", {"tensor_parallel": 8}, "layout.tensor_parallel", "12 attention heads"),
    (
        "Llama-3.1-8B",
        {"tensor_parallel": 8, "decode_context_parallel": 2},
        "layout.decode_context_parallel",
        "8 heads of keys 1 times",
    ),
    (
        "Qwen2.5-0.5B",
        {"tensor_parallel": 14, "decode_context_parallel": 2},
        "layout.decode_context_parallel",
        "each head of keys has 7",
    ),
    ("DeepSeek-V3", {"tensor_parallel": 256}, "layout.tensor_parallel", "128 attention heads"),
    ("Gemma-3-1B", {"tensor_parallel": 3}, "layout.tensor_parallel", "4 attention heads"),
]


@pytest.mark.parametrize(("name", "layout", "key", "word"), VIOLATIONS)
def test_a_layout_that_cannot_work_is_refused_by_key(
    published: Published, name: str, layout: dict[str, Any], key: str, word: str
) -> None:
    """The refusal names the key at fault, its value, and the size it does not go with."""
    found = constraint_violations(Architecture(published[name]), LayoutConfig(**layout))

    assert any(".".join(each.path) == key and word in each.fault for each in found), found


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("Llama-3.1-70B", {"tensor_parallel": 8}),
        ("Llama-3.1-70B", {"tensor_parallel": 64}),
        ("SmolLM2-135M", {"tensor_parallel": 3}),
        ("Qwen2.5-7B", {"tensor_parallel": 4, "pipeline_parallel": 3}),
        ("DeepSeek-V3", {"tensor_parallel": 16}),
        ("DeepSeek-V3", {"tensor_parallel": 8, "decode_context_parallel": 8}),
        ("DeepSeek-V3", {"data_parallel": 16, "expert_parallel": True}),
        ("Qwen3-30B-A3B", {"tensor_parallel": 8}),
        ("Llama-3.1-8B", {"tensor_parallel": 16, "decode_context_parallel": 2}),
        ("gpt-oss-120b", {"tensor_parallel": 8}),
        ("BERT-base", {"tensor_parallel": 4}),
    ],
)
def test_a_layout_that_works_is_not_refused(published: Published, name: str, layout: dict[str, Any]) -> None:
    """Layouts that people use are not refused."""
    assert constraint_violations(Architecture(published[name]), LayoutConfig(**layout)) == []


def test_a_layout_that_splits_quantization_blocks_is_refused(published: Published) -> None:
    """Experts of width 1536 in FP8 blocks of 128: eight ranks would cut the blocks, four do not, nor do whole experts.
    Attention of 14 heads of 64 in groups of 128: two ranks would have three groups and a half each.
    """
    group_tensors = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    settings = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    model = Architecture({**published["Qwen3-235B-A22B"], **settings})

    found = constraint_violations(model, LayoutConfig(tensor_parallel=8))

    assert [each.path for each in found] == [("layout", "tensor_parallel")]
    assert "within the blocks of 128" in found[0].message
    assert constraint_violations(
        Architecture({**published["Qwen2.5-0.5B"], **group_tensors}), LayoutConfig(tensor_parallel=2)
    )
    assert constraint_violations(model, LayoutConfig(tensor_parallel=4)) == []
    assert constraint_violations(model, LayoutConfig(tensor_parallel=8, expert_parallel=True)) == []


def test_max_model_len_is_limited_by_the_model(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A longer one is refused, unless its positions are stretched by a factor that the written length does not count, or
    vLLM's own variable lets it pass.
    """
    config = {**published["Llama-2-7B"], "max_position_embeddings": 4096}
    counted = {**config, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    stretched = {**config, "rope_scaling": {"type": "linear", "factor": 4.0}}

    found = constraint_violations(Architecture(config), LayoutConfig(), 8192)

    assert [each.path for each in found] == [("engine", "max_model_len")]
    assert "made for 4096 tokens" in found[0].message
    assert constraint_violations(Architecture(counted), LayoutConfig(), 8192) == found
    assert constraint_violations(Architecture(stretched), LayoutConfig(), 8192) == []
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert constraint_violations(Architecture(config), LayoutConfig(), 8192) == []


@pytest.mark.parametrize(
    ("settings", "longest", "usual"),
    [
        ({}, None, None),
        ({"max_position_embeddings": 4096, "n_positions": 1024}, 1024, 1024),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default"}}, 4096, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192, 8192),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [8.0]},
            },
            131072,
            4096,
        ),
        (
            {
                "max_position_embeddings": 4096,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                },
            },
            32768,
            32768,
        ),
    ],
)
def test_lengths_are_those_of_vllm(
    published: Published, settings: dict[str, Any], longest: int | None, usual: int | None
) -> None:
    """What is written, with its factor where that is still to come; of long RoPE, what it was made for first."""
    sizes = {key: value for key, value in published["Llama-2-7B"].items() if key != "max_position_embeddings"}
    model = Architecture({**sizes, **settings})

    assert (model.max_length, model.default_length) == (longest, usual)
