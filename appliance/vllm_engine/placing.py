"""
A layout as vLLM's engine arguments, and as the environment of its processes.
"""

from __future__ import annotations

from typing import Any

from appliance.layout import LayoutSection

_EXECUTORS = {"ray": "ray", "multiprocess": "mp"}


def of_layout(layout: LayoutSection) -> dict[str, Any]:  # Any: vLLM's argument values
    """
    What a layout says, in vLLM's words; what it does not say is left to vLLM.
    """
    said = {
        "gpu_memory_utilization": layout.memory_fraction,
        "device_ids": list(layout.devices) if layout.devices else None,
        "cpu_offload_gb": layout.cpu_offload_gib or None,
        "distributed_executor_backend": _EXECUTORS.get(layout.executor),
        "enable_expert_parallel": layout.expert_parallel or None,
        "data_parallel_size_local": layout.data_parallel_local,
        "data_parallel_address": layout.data_parallel_address,
    }
    sizes = {
        "data_parallel_size": layout.data_parallel,
        "decode_context_parallel_size": layout.decode_context_parallel,
        "nnodes": layout.nodes.count,
    }
    arguments: dict[str, Any] = {
        "tensor_parallel_size": layout.tensor_parallel,
        "pipeline_parallel_size": layout.pipeline_parallel,
    }
    if layout.nodes.count > 1:
        arguments |= {"node_rank": layout.nodes.rank, "master_addr": layout.nodes.address}
    arguments |= {name: size for name, size in sizes.items() if size > 1}
    return arguments | {name: value for name, value in said.items() if value is not None}


def environment_of(layout: LayoutSection) -> dict[str, str]:
    """
    What vLLM hears of a layout only through the environment.
    """
    settings = {}
    if layout.cpu_threads is not None:
        settings["OMP_NUM_THREADS"] = str(layout.cpu_threads)
    if layout.ranks > 1 or layout.cpu_threads is not None:
        # On a CPU each rank would want a NUMA node of its own, and all of its cores.
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return settings
