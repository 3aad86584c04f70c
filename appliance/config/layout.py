"""Config of the layout: how a model is placed on devices and machines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.config.base import BaseConfig

Degree = Annotated[int, Field(ge=1, le=1024)]
Device = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^(GPU|MIG)-[0-9A-Za-z/-]+$")]
Fraction = Annotated[float, Field(gt=0, le=1)]


class KvCacheConfig(BaseConfig):
    """The memory of the KV cache on each device, said outright: `bytes` or `fraction`."""

    bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes on each device; of several models, each has its own."""

    fraction: Fraction | None = None
    """Share of each device's memory; on a CPU, of the machine's memory."""


class NodesConfig(BaseConfig):
    """The machines that share one model: the same file is served on each, with a `rank` of its own, such as
    `${env:LWS_WORKER_INDEX}`. Rank 0 waits for the others and answers the calls; the others compute for it, refuse
    calls, and end when it does, as it does when one of them ends. They trust each other and their network.
    """

    count: Degree = 1
    """Machines in all; each holds the same number of ranks."""

    rank: Annotated[int, Field(ge=0)] = 0
    """Which of them this machine is, from 0; rank 0 answers the calls."""

    address: Annotated[str, Field(min_length=1)] | None = None
    """Host name or IP address of rank 0, as the others reach it; needed where there are several."""

    port: Annotated[int, Field(ge=1, le=65534)] = 29500
    """
    TCP port of rank 0 where the machines meet; vLLM takes the next one, and others that it chooses. Two models that
    share a machine need ports of their own.
    """


class LayoutConfig(BaseConfig):
    """The layout of one model: how many ranks share its weights, which devices and machines they are, and what memory
    they may take. `appliance plan FILE` says what it comes to, before anything is fetched.
    """

    devices: Annotated[tuple[Device, ...], Field(min_length=1)] | None = None
    """
    GPUs of this machine that the model takes: numbers as `nvidia-smi -L` counts them, or UUIDs (`GPU-...`, `MIG-...`
    for a slice); unset is the first ones. All numbers or all UUIDs, one for each rank of this machine.
    """

    tensor_parallel: Degree = 1
    """GPUs that share each layer's weights; the model's attention heads must divide by it."""

    pipeline_parallel: Degree = 1
    """Groups of GPUs that hold consecutive layers."""

    data_parallel: Degree = 1
    """Copies of the model, each with requests of its own; with `expert_parallel` they share the experts."""

    data_parallel_local: Degree | None = None
    """Copies on this machine; unset is all of them, or with `nodes` their even share."""

    data_parallel_address: Annotated[str, Field(min_length=1)] | None = None
    """Host of the first copy, as the copies on other machines reach it; unset is `nodes.address`, or this machine."""

    expert_parallel: bool = False
    """Give each rank whole experts instead of a slice of every expert; only for a mixture of experts."""

    decode_context_parallel: Degree = 1
    """Ranks of `tensor_parallel` that share the tokens of the KV cache instead of copying its heads."""

    memory_fraction: Fraction | None = None
    """
    Share of each GPU's memory the engine may take, weights and KV cache together; on a CPU, of the machine's memory.
    The shares of all models in the file must fit together; unset is vLLM's default, which is meant for a model alone.
    """

    kv_cache: KvCacheConfig | None = None
    """Memory of the KV cache, instead of what `memory_fraction` leaves; unset leaves it to that."""

    cpu_offload_gib: Annotated[float, Field(ge=0)] = 0
    """GiB of weights of each GPU that stay in the machine's memory, and are read from there in every step."""

    cpu_threads: Annotated[int, Field(ge=1)] | None = None
    """
    Threads of each rank that computes on a CPU. Unset, `OMP_NUM_THREADS` says it, and else they are as many as the
    cores that this process may use, by its affinity and its container's limit.
    """

    nodes: NodesConfig = NodesConfig()
    """The machines that share the model; unset is this one."""

    executor: Literal["auto", "ray", "multiprocess"] = "auto"
    """
    Who starts the ranks: `ray`, a Ray cluster that this machine is part of, or the one that `RAY_ADDRESS` names, where
    the model must lie at the same path on every machine; or `multiprocess`, processes of each machine. `auto` is
    processes, or none for one rank.
    """

    @property
    def is_leader_node(self) -> bool:
        """This machine answers the requests, and other machines compute for it."""
        return self.nodes.count > 1 and self.nodes.rank == 0

    @property
    def is_worker_node(self) -> bool:
        """This machine computes for another one, which answers."""
        return self.nodes.rank > 0

    @property
    def keeps_copies_on_one_node(self) -> bool:
        """Whether no data-parallel copy is spread over machines."""
        return self.data_parallel % self.nodes.count == 0

    @property
    def ranks(self) -> int:
        """Devices that the model takes on all machines."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def is_single_rank(self) -> bool:
        """Whether there is one rank, and the config names no executor."""
        return self.ranks == 1 and self.executor == "auto"

    @property
    def local_ranks(self) -> int:
        """Devices that the model takes on this machine."""
        if self.data_parallel_local is not None and self.nodes.count == 1:
            return self.tensor_parallel * self.pipeline_parallel * self.data_parallel_local
        return max(1, self.ranks // self.nodes.count)


AnyLayout = LayoutConfig | Literal["auto"]
"""A layout, or `auto`: the fewest devices of this machine that hold the model, chosen once its files are here."""
