"""Config of the layout: how a model is placed on devices and machines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.config.base import BaseConfig, text_like

Degree = Annotated[int, Field(ge=1, le=1024)]
Device = (
    Annotated[int, Field(ge=0)]
    | Annotated[str, text_like(r"^(GPU|MIG)-[0-9A-Za-z/-]+$", "the UUID of a GPU, as in `nvidia-smi -L`")]
)
Fraction = Annotated[float, Field(gt=0, le=1)]


class KvCacheConfig(BaseConfig):
    """Memory of the KV cache on each device, as `bytes` or as `fraction`."""

    bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes on each device; each model has its own KV cache."""

    fraction: Fraction | None = None
    """Fraction of each device's memory; on a CPU, of the machine's memory."""


class NodesConfig(BaseConfig):
    """The machines that share one model. Each serves the same file with its own `rank`, such as
    `${env:LWS_WORKER_INDEX}`. Rank 0 waits for the other nodes and serves the requests; the other nodes compute for it
    and refuse requests. If one node ends, all end. The nodes trust each other and their network.
    """

    count: Degree = 1
    """Number of machines; each has the same number of ranks."""

    rank: Annotated[int, Field(ge=0)] = 0
    """Index of this machine, from 0; rank 0 serves the requests."""

    address: Annotated[str, Field(min_length=1)] | None = None
    """Host name or IP address of rank 0 that the other nodes connect to; required for several machines."""

    port: Annotated[int, Field(ge=1, le=65534)] = 29500
    """TCP port of rank 0 for the connections of the other nodes; vLLM uses the next port, and others that it chooses.
    Two models on the same machine need different ports.
    """


class LayoutConfig(BaseConfig):
    """The layout of one model: the number of ranks that share its weights, their devices and machines, and their
    memory. `appliance plan FILE` prints the result before the download.
    """

    devices: Annotated[tuple[Device, ...], Field(min_length=1)] | None = None
    """GPUs of this machine for the model: indexes as in `nvidia-smi -L`, or UUIDs (`GPU-...`, or `MIG-...` for a
    slice); unset is the first ones. All are indexes or all are UUIDs, one per rank of this machine.
    """

    tensor_parallel: Degree = 1
    """Number of GPUs that share the weights of each layer; the number of attention heads must be divisible by it."""

    pipeline_parallel: Degree = 1
    """Number of pipeline stages: groups of GPUs that hold consecutive layers."""

    data_parallel: Degree = 1
    """Number of copies of the model, each with its own requests; with `expert_parallel` they share the experts."""

    data_parallel_local: Degree | None = None
    """Number of copies on this machine; unset is all of them, or with `nodes` an equal share."""

    data_parallel_address: Annotated[str, Field(min_length=1)] | None = None
    """Host of the first copy that copies on other machines connect to; unset is `nodes.address`, or this machine."""

    expert_parallel: bool = False
    """Place whole experts on each rank instead of a slice of every expert; only for a mixture of experts."""

    decode_context_parallel: Degree = 1
    """Number of ranks of `tensor_parallel` that share the tokens of the KV cache instead of copying its heads."""

    memory_fraction: Fraction | None = None
    """Fraction of each GPU's memory for the engine: weights and KV cache together; on a CPU, of the machine's memory.
    The fractions of all models on a device must not exceed 1; unset is vLLM's default, which is meant for a single
    model.
    """

    kv_cache: KvCacheConfig | None = None
    """Memory of the KV cache; unset is what the weights leave of `memory_fraction`."""

    cpu_offload_gib: Annotated[float, Field(ge=0)] = 0
    """GiB of each GPU's weights that are kept in the machine's memory and read from there in every step."""

    cpu_threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of each rank on a CPU; unset is `OMP_NUM_THREADS`, or else the number of cores that this process may use,
    by its affinity and the container's limit.
    """

    nodes: NodesConfig = NodesConfig()
    """The machines that share the model; unset is only this machine."""

    executor: Literal["auto", "ray", "multiprocess"] = "auto"
    """How the ranks are started. `ray` uses a running Ray cluster: the one of this machine, or the one in
    `RAY_ADDRESS`; the model must be at the same path on every machine. `multiprocess` starts processes on each machine.
    `auto` is `multiprocess`, or no extra process for one rank.
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
