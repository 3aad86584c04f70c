"""Memory of an engine on a CPU: its KV cache, which vLLM would have take most of the machine, and its number format."""

from __future__ import annotations

from appliance.config.layout import LayoutConfig
from appliance.core.system import usable_memory

_MOST_BYTES = 2 * 1024**3

# Half a billion parameters in bfloat16. The answers of so small a model often hang on less than a step of bfloat16
# (`just bench quality`), and in float32 it takes 2 GiB at most.
_SMALL_WEIGHT_BYTES = 1024**3


def cpu_kv_bytes(layout: LayoutConfig, weight_bytes: int) -> int:
    """What is usual, or what the model's share of the machine (of its container, where that has less) leaves beside its
    weights; less than 1 where that is none.
    """
    total, available = usable_memory()
    usual = min(_MOST_BYTES, available // 4)
    if layout.memory_fraction is None:
        return usual
    return min(usual, int(total * layout.memory_fraction) - weight_bytes)


def computes_in_float32(weight_bytes: int, *, is_pooling: bool, is_quantized: bool) -> bool:
    """Whether `dtype: auto` is float32 on a CPU for a model whose files hold so many bytes of weights.

    It does not depend on the processor, so that answers and plans are the same on all of them.
    """
    # For encoders vLLM would take float16, which costs precision and gains nothing on a CPU.
    return is_pooling or (not is_quantized and weight_bytes <= _SMALL_WEIGHT_BYTES)
