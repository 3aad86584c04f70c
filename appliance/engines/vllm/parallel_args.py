"""A layout as vLLM's engine arguments, and as the environment of its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil

from appliance.config.layout import LayoutConfig

_EXECUTORS = {"ray": "ray", "multiprocess": "mp"}


@dataclass(frozen=True, slots=True)
class Addresses:
    """IP addresses by which the machines of one model reach each other: this one's, and that of rank 0."""

    own: str
    leader: str


def of_layout(layout: LayoutConfig, addresses: Addresses | None = None) -> dict[str, Any]:  # Any: vLLM's values
    """What a layout says, in vLLM's words; what it does not say is left to vLLM.

    `addresses` are those of the machines, None until they have met; the layout's own may be a name, on which vLLM
    cannot listen.
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
    }
    arguments: dict[str, Any] = {
        "tensor_parallel_size": layout.tensor_parallel,
        "pipeline_parallel_size": layout.pipeline_parallel,
    }
    arguments |= {name: size for name, size in sizes.items() if size > 1}
    if layout.nodes.count > 1:
        leader = addresses.leader if addresses else layout.nodes.address
        arguments |= _of_copies(layout, leader) if layout.has_whole_copies else _of_nodes(layout, leader)
    return arguments | {name: value for name, value in said.items() if value is not None}


def _of_nodes(layout: LayoutConfig, leader: str | None) -> dict[str, Any]:  # Any: vLLM's values
    """One copy of the model, spread over the machines."""
    nodes = layout.nodes
    return {"nnodes": nodes.count, "node_rank": nodes.rank, "master_addr": leader, "master_port": nodes.port + 1}


def _of_copies(layout: LayoutConfig, leader: str | None) -> dict[str, Any]:  # Any: vLLM's values
    """Copies of the model, each of them on one machine."""
    here = layout.data_parallel // layout.nodes.count
    arguments = {
        "data_parallel_size_local": here,
        "data_parallel_address": leader,
        "data_parallel_rpc_port": layout.nodes.port + 1,
    }
    # To vLLM a first copy that is told of is a front end of its own.
    return arguments | ({"data_parallel_start_rank": here * layout.nodes.rank} if layout.is_following else {})


def environment_of(layout: LayoutConfig, addresses: Addresses | None = None) -> dict[str, str]:
    """What vLLM hears of a layout only through the environment, for processes that it starts itself."""
    if layout.is_alone:
        return {}
    settings = {}
    if layout.cpu_threads is not None:
        settings["OMP_NUM_THREADS"] = str(layout.cpu_threads)
    if layout.ranks > 1 or layout.cpu_threads is not None:
        # On a CPU each rank would want a NUMA node of its own, and all of its cores.
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if layout.executor == "ray":
        # A cluster that is there: Ray would start one of this machine alone, and say nothing. Its workers' lines are no
        # events of our log, and Ray keeps them.
        settings |= {"RAY_ADDRESS": "auto", "RAY_LOG_TO_DRIVER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if addresses is not None:
        # Of several networks, vLLM and gloo would guess which one leads to the other machines.
        settings["VLLM_HOST_IP"] = addresses.own
        interface = _interface(addresses.own)
        if interface is not None:
            settings["GLOO_SOCKET_IFNAME"] = interface
    return settings


def _interface(address: str) -> str | None:
    """The network interface that has an address; None where only a router in between knows it."""
    for name, found in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == address for each in found):
            return name
    return None
