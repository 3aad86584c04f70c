"""The number format on a CPU: one rule for the engine and for its plan, whatever the processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.system import usable_memory
from appliance.engines.vllm.engine_args import EngineSpec, engine_arguments
from appliance.planner.hardware import Hardware
from appliance.planner.memory import EngineRequirements, MemoryEstimate
from appliance.planner.model_info import inspect_model

CPU = Hardware("cpu", 1, 1 << 36, is_cpu=True)


def _dtypes(folder: Path, engine: EngineConfig) -> tuple[str, str]:
    """What the engine is told, and what the plan counts with."""
    spec = EngineSpec("it", folder, LayoutConfig(), engine)
    info = inspect_model(StorageConfig(uri=str(folder)), GlobalStorageConfig())
    planned = MemoryEstimate(info, LayoutConfig(), EngineRequirements(engine), CPU)
    return engine_arguments(spec, on_cpu=True)["dtype"], planned.dtype


@pytest.mark.parametrize(
    ("name", "changes", "engine", "dtypes"),
    [
        ("Qwen2.5-0.5B", {}, {}, ("float32", "F32")),
        ("Llama-3.1-8B", {}, {}, ("auto", "BF16")),
        ("Qwen2.5-0.5B", {}, {"dtype": "bfloat16"}, ("bfloat16", "BF16")),
        ("Llama-3.1-8B", {}, {"dtype": "float32"}, ("float32", "F32")),
        ("Qwen2.5-0.5B", {"quantization_config": {"quant_method": "fp8"}}, {}, ("auto", "BF16")),
    ],
    ids=["small", "large", "small, as said", "large, as said", "quantized"],
)
def test_a_small_model_computes_in_float32(
    write: Callable[..., Path],
    published: Mapping[str, Any],
    name: str,
    changes: Mapping[str, Any],
    engine: Mapping[str, Any],
    dtypes: tuple[str, str],
) -> None:
    """Unless the config says otherwise or its weights are quantized; a large one computes in its own format."""
    folder = write({**published[name], **changes})

    assert _dtypes(folder, EngineConfig.model_validate(engine)) == dtypes


def test_the_cache_gets_what_memory_fraction_leaves(write: Callable[..., Path], published: Mapping[str, Any]) -> None:
    """Weights count as they are loaded, in float32 twice what their files hold in bfloat16."""
    folder = write(published["SmolLM2-135M"])
    info = inspect_model(StorageConfig(uri=str(folder)), GlobalStorageConfig())
    loaded = 4 * sum(tensor.elements for tensor in info.tensors)
    total, _ = usable_memory()
    layout = LayoutConfig(memory_fraction=(loaded + 2**24) / total)

    real = engine_arguments(EngineSpec("it", folder, layout, EngineConfig()), on_cpu=True)["kv_cache_memory_bytes"]
    (planned,) = MemoryEstimate(info, layout, EngineRequirements(EngineConfig()), CPU).ranks

    assert planned.weight_bytes == loaded
    assert real == planned.kv_cache_bytes == pytest.approx(2**24, abs=8)
