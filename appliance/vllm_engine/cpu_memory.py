"""
Memory of the KV cache on a CPU, which vLLM would have take most of the machine.
"""

from __future__ import annotations

from appliance.layout import LayoutSection
from appliance.processes import usable_memory

_MOST_BYTES = 2 * 1024**3


def cpu_kv_bytes(layout: LayoutSection, weight_bytes: int) -> int:
    """
    What is usual, or what the model's share of the machine (of its container, where that has less) leaves beside its
    weights; less than 1 where that is none.
    """
    total, available = usable_memory()
    usual = min(_MOST_BYTES, available // 4)
    if layout.memory_fraction is None:
        return usual
    return min(usual, int(total * layout.memory_fraction) - weight_bytes)
