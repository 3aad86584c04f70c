"""Defaults of an engine on a CPU: size of the KV cache, and dtype. vLLM's own cache would take most of the machine."""

from __future__ import annotations

from appliance.config.layout import LayoutConfig
from appliance.core.system import usable_memory

_MAX_KV_CACHE_BYTES = 2 * 1024**3

# Half a billion parameters in bfloat16. Answers of such small models often depend on less than bfloat16's precision
# (`just bench quality`), and in float32 they take 2 GiB at most.
_SMALL_WEIGHT_BYTES = 1024**3


def cpu_kv_cache_bytes(layout: LayoutConfig, weight_bytes: int) -> int:
    """Return the default, or what `memory_fraction` of the machine (or container) leaves besides the weights.

    The result is 0 or less if nothing is left.
    """
    total, available = usable_memory()
    default = min(_MAX_KV_CACHE_BYTES, available // 4)
    if layout.memory_fraction is None:
        return default
    return min(default, int(total * layout.memory_fraction) - weight_bytes)


def computes_in_float32(weight_bytes: int, *, is_pooling: bool, is_quantized: bool) -> bool:
    """Whether `dtype: auto` means float32 on a CPU.

    It does not depend on the processor, so that answers and plans are equal on all of them.
    """
    # vLLM would choose float16 for encoders, which costs precision and gains nothing on a CPU.
    return is_pooling or (not is_quantized and weight_bytes <= _SMALL_WEIGHT_BYTES)
