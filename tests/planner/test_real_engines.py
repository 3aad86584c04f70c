"""A plan is held against vLLM itself: what it says an engine holds, the engine holds; what it refuses, vLLM refuses.

The default run has one of each kind, `just truth` has all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from planner.real_engines import RealEngines
from ruamel.yaml import YAML

from appliance.cli.plan import plans
from appliance.config import load
from appliance.planner.hardware import detect_hardware
from appliance.planner.planner import Plan

Config = Mapping[str, Any]  # Any: JSON values

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="the ranks of these engines are on the CPU"),
]

_COMMON = {"vocab_size": 1000, "max_position_embeddings": 4096, "dtype": "bfloat16"}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SMALL = YAML(typ="safe").load(Path(__file__).with_name("small.yaml").read_text())
SMALL: Mapping[str, Config] = {name: {**_COMMON, **_SPECIAL, **config} for name, config in _SMALL.items()}

# The scales of the cache that compressed-tensors brings along, four bytes and two each.
_SCALES = 3 * (4 + 2)


@pytest.fixture(scope="module")
def engines() -> Iterator[RealEngines]:
    """One vLLM for all tests here."""
    with RealEngines() as engines:
        yield engines


@pytest.fixture(scope="module")
def saved(engines: RealEngines, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a small model, written when it is first wanted."""

    @cache
    def saved(name: str, quantize: str | None = None) -> Path:
        folder = tmp_path_factory.mktemp(name)
        engines.save(SMALL[name], folder, quantize)
        return folder

    return saved


def _file(folder: Path, layout: Config, engine: Config | None = None, **args: object) -> Path:
    """A file that serves a model with a KV cache of 32 MiB on each rank."""
    is_encoder = "BertModel" in json.loads((folder / "config.json").read_text())["architectures"]
    # As on a GPU: so small a model would compute in float32 on a CPU.
    plain = (
        {"kv_cache_memory_bytes": 1 << 25} if is_encoder else {"kv_cache_memory_bytes": 1 << 25, "dtype": "bfloat16"}
    )
    args |= {} if is_encoder else {"skip_tokenizer_init": True}
    model = {
        "name": "it",
        "class": "encoder" if is_encoder else "generative",
        "storage": {"uri": str(folder)},
        "layout": layout,
        "engine": {**plain, **(engine or {}), "args": args},
    }
    file = folder / "appliance.yaml"
    file.write_text(json.dumps({"models": [model]}))
    return file


def _plan(file: Path) -> Plan:
    ((_, plan),) = plans(load(file).config, detect_hardware(), 1.0)
    return plan


def _compare(file: Path, engines: RealEngines, extra_bytes: int = 0) -> None:
    """
    Compare a plan with the engine: the bytes of each rank, which are more by so many, the tokens, the longest text.
    """
    planned, real = _plan(file), engines.start(file)

    assert planned.refusals == ()
    assert "refused" not in real, real["refused"]
    assert real["weight_bytes"] == [each.weight_bytes + extra_bytes for each in planned.ranks]
    assert (real["kv_tokens"] or 0) == planned.kv_tokens
    assert real["max_model_len"] == planned.max_model_len


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
@pytest.mark.parametrize("name", ["llama", "qwen-tied", "mixtral", "deepseek", "gemma-sliding", "bert"])
def test_an_engine_has_the_planned_memory(
    engines: RealEngines, saved: Callable[..., Path], name: str, ranks: int
) -> None:
    """Bytes of weights on each rank, tokens of the KV cache, the longest text."""
    _compare(_file(saved(name), {"tensor_parallel": ranks}), engines)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("method", "scales"), [("gptq", 0), ("awq", 0), ("int8", _SCALES)])
def test_quantized_weights_have_the_planned_size(
    engines: RealEngines, saved: Callable[..., Path], method: str, scales: int, ranks: int
) -> None:
    """Packs, zero points and scales of each format have the sizes and types that vLLM gives them."""
    layers = SMALL["wide"]["num_hidden_layers"]

    _compare(_file(saved("wide", method), {"tensor_parallel": ranks}), engines, scales * layers)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama", {"pipeline_parallel": 2}),
        ("qwen-tied", {"pipeline_parallel": 2}),
        ("mixtral", {"tensor_parallel": 2, "expert_parallel": True}),
    ],
)
def test_ranks_of_different_sizes_are_planned_separately(
    engines: RealEngines, saved: Callable[..., Path], name: str, layout: Config
) -> None:
    """Stages of 2 and 1 layers, and ranks of 2 experts and 1: each rank has its own figure."""
    _compare(_file(saved(name), layout), engines)


def _heads(heads: int, kv_heads: int, **more: object) -> dict[str, object]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 32 * heads, **more}


_TENSOR, _CONTEXT, _LENGTH = "layout.tensor_parallel", "layout.decode_context_parallel", "engine.max_model_len"
_ASSERTED, _DERIVED = "AssertionError", "greater than the derived max_model_len"
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}

# A model and what is other about it, a layout, an engine; the key that we name, and words that vLLM says.
Refused = tuple[str, Config, Config, Config, str, str]

BY_ITS_CONFIG: list[Refused] = [
    ("llama", {}, {"tensor_parallel": 3}, {}, _TENSOR, "attention heads (8) must be divisible"),
    ("llama", _heads(9, 3), {"tensor_parallel": 2}, {}, _TENSOR, "attention heads (9) must be divisible"),
    ("qwen-tied", _heads(14, 2), {"tensor_parallel": 4}, {}, _TENSOR, "attention heads (14) must be divisible"),
    ("gemma-sliding", {}, {"tensor_parallel": 3}, {}, _TENSOR, "attention heads (4) must be divisible"),
    ("bert", {}, {"tensor_parallel": 3}, {}, _TENSOR, "attention heads (4) must be divisible"),
    ("bert", {}, {"pipeline_parallel": 2}, {}, "layout.pipeline_parallel", "Pipeline parallelism is not supported"),
    ("llama", {}, {"tensor_parallel": 2, "expert_parallel": True}, {}, "layout.expert_parallel", "Number of experts"),
    ("llama", {}, {"tensor_parallel": 2, "decode_context_parallel": 2}, {}, _CONTEXT, "total number of KV heads"),
    ("llama", {}, {"tensor_parallel": 4, "decode_context_parallel": 4}, {}, _CONTEXT, "exceeds the maximum"),
    ("llama", _heads(6, 2), {"tensor_parallel": 6, "decode_context_parallel": 2}, {}, _CONTEXT, "query heads per KV"),
    ("llama", {}, {}, {"max_model_len": 8192}, _LENGTH, _DERIVED),
    ("llama", {"rope_parameters": _DEFAULT}, {}, {"max_model_len": 4097}, _LENGTH, _DERIVED),
    ("llama", {"rope_scaling": _LLAMA3}, {}, {"max_model_len": 8192}, _LENGTH, _DERIVED),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}, {"max_model_len": 8192}, _LENGTH, _DERIVED),
]

BY_A_RANK: list[Refused] = [
    ("llama", _heads(12, 3), {"tensor_parallel": 2}, {}, _TENSOR, _ASSERTED),
    ("llama", _heads(40, 10), {"tensor_parallel": 4}, {}, _TENSOR, _ASSERTED),
    ("llama", _heads(8, 8, intermediate_size=510), {"tensor_parallel": 4}, {}, _TENSOR, _ASSERTED),
    ("llama", _heads(6, 6, intermediate_size=510), {"tensor_parallel": 3}, {}, _TENSOR, "1024 is not divisible by 3"),
    ("mixtral", {"intermediate_size": 511}, {"tensor_parallel": 2}, {}, _TENSOR, _ASSERTED),
    ("deepseek", {"moe_intermediate_size": 129}, {"tensor_parallel": 2}, {}, _TENSOR, _ASSERTED),
    ("deepseek", {"intermediate_size": 513}, {"tensor_parallel": 2}, {}, _TENSOR, _ASSERTED),
    ("llama", {}, {"pipeline_parallel": 4}, {}, "layout.pipeline_parallel", "ZeroDivisionError"),
    ("llama", {}, {}, {"kv_cache_memory_bytes": 1 << 20}, _LENGTH, "larger than the available KV cache"),
]


@pytest.mark.parametrize(
    ("name", "changes", "layout", "engine", "key", "words"),
    [*BY_ITS_CONFIG, *(pytest.param(*each, marks=pytest.mark.long) for each in BY_A_RANK)],
)
def test_vllm_refuses_what_the_planner_refuses(
    engines: RealEngines,
    tmp_path: Path,
    name: str,
    changes: Config,
    layout: Config,
    engine: Config,
    key: str,
    words: str,
) -> None:
    """Each key that a plan names is one that vLLM would not start with, and for that reason."""
    (tmp_path / "config.json").write_text(json.dumps({**SMALL[name], **changes}))
    file = _file(tmp_path, layout, engine, load_format="dummy")

    named, real = [".".join(each.path) for each in _plan(file).refusals], engines.start(file)

    assert key in named
    assert words in real["refused"]


@pytest.mark.long
def test_scaled_positions_allow_longer_texts(engines: RealEngines, tmp_path: Path) -> None:
    """A factor that the written length does not count is allowed for by both."""
    stretched = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps({**SMALL["llama"], **stretched}))

    planned, real = _plan(file := _file(tmp_path, {}, {}, load_format="dummy")), engines.start(file)

    assert planned.refusals == ()
    assert real["max_model_len"] == planned.max_model_len == 4 * 4096
