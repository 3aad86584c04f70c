"""What each rank holds of the weights, by hand-counted sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.config.layout import LayoutConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.planner.expected_tensors import expected_tensors
from appliance.planner.model_config import Architecture
from appliance.planner.model_info import inspect_model
from appliance.planner.safetensors_header import TensorInfo
from appliance.planner.weight_sharding import Rank, ShardRule, group_tensors, stage_ends, weight_bytes_by_rank

DENSE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "tie_word_embeddings": False,
}
SPARSE = {**DENSE, "model_type": "mixtral", "num_local_experts": 6}


def _weights(config: Mapping[str, Any], tensors: list[TensorInfo] | None = None, **layout: int) -> Mapping[Rank, int]:
    model = Architecture(config)
    groups = group_tensors(tensors or expected_tensors(model), model)
    return weight_bytes_by_rank(groups, model, LayoutConfig(**layout), "BF16")


def test_one_rank_has_all_weights_with_a_padded_vocabulary() -> None:
    """Both embeddings grow to 128 rows, the next multiple of 64; nothing else grows."""
    padding = 2 * (128 - 100) * 64 * 2
    whole = sum(tensor.size_bytes for tensor in expected_tensors(Architecture(DENSE)))

    found = _weights(DENSE)

    assert found == {(0, 0, 0): whole + padding}


def test_ranks_shard_matrices_and_copy_norms_and_few_heads() -> None:
    """Four ranks have a quarter of each matrix, all norms, and one head of keys each where there are two in all."""
    attention = 64 * 64 * 2 // 4 + 2 * 8 * 64
    layer = attention + 3 * 64 * 128 // 4 + 2 * 64
    expected = 2 * (2 * 128 * 64 // 4 + 3 * layer + 64)

    found = _weights(DENSE, tensor_parallel=4)

    assert set(found.values()) == {expected}
    assert len(found) == 4


def test_tied_embeddings_are_in_the_first_and_last_stage() -> None:
    """One stage has them once; of two, the first and the last have them."""
    tied = {**DENSE, "tie_word_embeddings": True}
    embeddings = 128 * 64 * 2

    one, two = _weights(tied), _weights(tied, pipeline_parallel=2)

    assert sum(two.values()) == sum(one.values()) + embeddings
    assert sum(_weights(DENSE).values()) == sum(one.values()) + embeddings


def test_remaining_layers_go_to_stages_before_the_last() -> None:
    """Of 7 layers in 3 stages, the middle one has three."""
    assert stage_ends(7, 3) == [2, 5, 7]
    assert stage_ends(8, 3) == [3, 6, 8]
    assert stage_ends(8, 2) == [4, 8]


def test_experts_are_sharded_or_distributed() -> None:
    """Sliced, all ranks hold the same; dealt out, the first ranks have the experts that are left over."""
    expert = 3 * 3 * 64 * 128 * 2

    sharded = list(_weights(SPARSE, tensor_parallel=4).values())
    distributed = list(_weights(SPARSE, tensor_parallel=4, expert_parallel=True).values())

    assert len(set(sharded)) == 1
    assert [size - distributed[3] for size in distributed] == [expert, expert, 0, 0]
    assert sum(distributed) == sum(sharded)


def test_data_parallel_copies_shard_the_experts() -> None:
    """Data parallel ranks hold all of the rest, and a slice of each expert only."""
    one, two = _weights(SPARSE), _weights(SPARSE, data_parallel=2)
    experts = 6 * 3 * 3 * 64 * 128 * 2

    assert list(two.values()) == [sum(one.values()) - experts // 2] * 2


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "local"),
    [
        ("model.layers.0.mlp.up_proj.qweight", "I32", (8, 128), 8 * 64),
        ("model.layers.0.mlp.down_proj.qweight", "I32", (16, 64), 8 * 64),
        ("model.layers.0.mlp.up_proj.scales", "F16", (2, 128), 2 * 64),
        ("model.layers.0.mlp.down_proj.qzeros", "I32", (4, 8), 2 * 8),
    ],
)
def test_packed_weights_are_sharded_in_the_other_dimension(
    name: str, dtype: str, shape: tuple[int, int], local: int
) -> None:
    """GPTQ and AWQ lie input first: outputs are their columns, inputs their rows."""
    config = {**DENSE, "quantization_config": {"quant_method": "gptq", "group_size": 32}}
    tensor = TensorInfo(name, dtype, shape)

    found = _weights(config, [tensor], tensor_parallel=2)

    assert found[0, 0, 0] == local * (4 if dtype == "I32" else 2)


@pytest.mark.parametrize(("form", "size"), [("int-quantized", 4), ("pack-quantized", 2)])
def test_scales_are_float32_unless_weights_are_packed(form: str, size: int) -> None:
    """Whatever type a quantizer of compressed-tensors wrote them in."""
    config = {**DENSE, "quantization_config": {"quant_method": "compressed-tensors", "format": form}}
    scale = TensorInfo("model.layers.0.mlp.up_proj.weight_scale", "BF16", (128, 1))

    assert set(_weights(config, [scale]).values()) == {128 * size}


def test_the_bias_of_the_router_is_float32() -> None:
    """The bias of DeepSeek's router, in whatever type it was written."""
    bias = TensorInfo("model.layers.2.mlp.gate.e_score_correction_bias", "BF16", (6,))

    assert set(_weights(SPARSE, [bias]).values()) == {6 * 4}


def test_block_scales_are_sharded_and_keep_their_type() -> None:
    """FP8 in blocks: the scales of 2 x 3 blocks are one row of blocks for each of two ranks, in float32."""
    config = {**DENSE, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    scale = TensorInfo("model.layers.0.mlp.up_proj.weight_scale_inv", "F32", (2, 3))

    found = _weights(config, [scale], tensor_parallel=2)

    assert found[0, 0, 0] == 1 * 3 * 4


def test_tensors_that_vllm_does_not_load_are_not_counted() -> None:
    """Buffers of older versions, layers past the last, an output that is tied, and the order of GPTQ's groups take no
    memory.
    """
    unused = [
        TensorInfo("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (32,)),
        TensorInfo("h.0.attn.bias", "F32", (1, 1, 64, 64)),
        TensorInfo("model.layers.3.mlp.up_proj.weight", "BF16", (128, 64)),
        TensorInfo("lm_head.weight", "BF16", (100, 64)),
        TensorInfo("model.layers.0.mlp.up_proj.g_idx", "I32", (64,)),
    ]

    found = _weights({**DENSE, "tie_word_embeddings": True}, unused)

    assert set(found.values()) == {0}


def test_fused_queries_keys_and_values_are_sharded_by_heads() -> None:
    """GPT-2's bias of 8 heads each, and Phi's 8 heads of queries with 2 of keys, copied where there are four ranks."""
    bias = TensorInfo("h.0.attn.c_attn.bias", "BF16", (3 * 64,))
    fused = TensorInfo("model.layers.0.self_attn.qkv_proj.weight", "BF16", (64 + 2 * 16, 64))
    alike = {**DENSE, "num_key_value_heads": 8}

    assert set(_weights(alike, [bias], tensor_parallel=2).values()) == {3 * 32 * 2}
    assert set(_weights(DENSE, [fused], tensor_parallel=4).values()) == {(2 + 2) * 8 * 64 * 2}


def test_float_weights_are_converted_to_the_dtype_of_the_model() -> None:
    """A checkpoint in float32 is half as large once it is loaded in bfloat16."""
    tensor = TensorInfo("model.layers.0.mlp.up_proj.weight", "F32", (128, 64))

    assert set(_weights(DENSE, [tensor]).values()) == {128 * 64 * 2}


def test_almost_all_weights_of_published_models_are_sharded(published: Mapping[str, Mapping[str, Any]]) -> None:
    """
    What is whole on every rank is norms, gates, sinks' like and low ranks: under a hundredth, but of latent attention.
    """
    for name, config in published.items():
        model = Architecture(config)
        groups = group_tensors(expected_tensors(model), model)
        whole = sum(group.elements for group in groups if group.rule is ShardRule.WHOLE)

        assert whole < sum(group.elements for group in groups) * (0.03 if model.is_latent else 0.01), name


def test_headers_have_the_expected_tensors(write: Callable[..., Path], published: Mapping[str, Any]) -> None:
    """A model whose headers are read has the tensors that its config lets expect."""
    config = published["Qwen2.5-0.5B"]
    folder = write(config)

    subject = inspect_model(StorageConfig(uri=str(folder)), GlobalStorageConfig())

    assert subject.source == "the headers of its safetensors"
    assert list(subject.tensors) == expected_tensors(Architecture(config))
    assert subject.read_bytes < subject.size_bytes / 1000


def test_equal_tensors_of_a_layer_are_grouped() -> None:
    """A layout of a model with 55,000 tensors looks at a few tensors of each layer, whatever its experts."""
    model = Architecture({**SPARSE, "num_hidden_layers": 90, "num_local_experts": 200})
    tensors = expected_tensors(model)
    groups = group_tensors(tensors, model)

    assert len(tensors) > 50_000
    assert len(groups) < 90 * 12
    assert sum(group.count * max(1, len(group.experts)) for group in groups) == len(tensors)
