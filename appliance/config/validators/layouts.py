"""Rules about layouts: sizes against devices and machines, and models against each other's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from appliance.config.layout import NodesConfig
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath, Diagnostic

# Shares such as 0.7, 0.2 and 0.1 are no exact sum.
_ROUNDING = 1e-9

# Stands for all devices, where a model does not say which it takes.
_ANY = "any"


def sizes_fit(raw: RawConfig) -> Iterator[Diagnostic]:
    """Sizes that split one another divide (``ParallelConfig`` of vLLM)."""
    for path, layout in _layouts(raw):
        tensor, context = _size(layout, "tensor_parallel"), _size(layout, "decode_context_parallel")
        if tensor % context:
            at = (*path, "decode_context_parallel")
            yield raw.diagnostic(at, f"is {context}, and tensor_parallel is {tensor}; must divide it")
        copies, local = _size(layout, "data_parallel"), _size(layout, "data_parallel_local")
        if local > copies:
            at = (*path, "data_parallel_local")
            yield raw.diagnostic(at, f"is {local}, and data_parallel is {copies}; must be at most that")


def devices_fit(raw: RawConfig) -> Iterator[Diagnostic]:
    """There is one device for each rank of this machine, named once, and all in one way."""
    for path, layout in _layouts(raw):
        devices, at = layout.get("devices"), (*path, "devices")
        if not isinstance(devices, list) or not devices:
            continue
        if len(set(map(type, devices))) > 1:
            yield raw.diagnostic(at, "mixes numbers and UUIDs; must be all of one kind")
        elif repeated := next((each for index, each in enumerate(devices) if each in devices[:index]), None):
            yield raw.diagnostic(at, f"names {repeated} twice; must name each device once")
        ranks = _ranks_here(layout)
        if ranks != len(devices):
            shape = " x ".join(f"{name} {_size(layout, name)}" for name in _SPLITS if name in layout) or "one rank"
            yield raw.diagnostic(
                at, f"has {len(devices)}, and the layout ({shape}) takes {ranks} here; must have {ranks}"
            )


def nodes_fit(raw: RawConfig) -> Iterator[Diagnostic]:
    """The ranks are spread evenly over the machines, and each of them knows which it is and where the first one is."""
    for path, layout in _layouts(raw):
        nodes, at = layout.get("nodes"), (*path, "nodes")
        if not isinstance(nodes, dict):
            continue
        count, rank = _size(nodes, "count"), nodes.get("rank")
        if isinstance(rank, int) and rank >= count:
            yield raw.diagnostic((*at, "rank"), f"is {rank}, and there are {count} nodes; must be less than that")
        if count == 1:
            continue
        if layout.get("executor") == "ray":
            yield raw.diagnostic(at, "is set, and the executor is ray, which finds its own; must be left out")
        if "address" not in nodes:
            yield raw.diagnostic(at, "has no address; must have it: where the node of rank 0 is")
        ranks, copies = prod(_size(layout, name) for name in _SPLITS), _size(layout, "data_parallel")
        if ranks % count:
            yield raw.diagnostic((*at, "count"), f"is {count}, and the layout has {ranks} ranks; must divide them")
        elif copies > 1 and copies % count:
            fault = f"is {count}, and data_parallel is {copies}; must divide it: several copies have each one machine"
            yield raw.diagnostic((*at, "count"), fault)
        elif copies > 1 and "data_parallel_local" in layout and _size(layout, "data_parallel_local") != copies // count:
            here = (*path, "data_parallel_local")
            yield raw.diagnostic(
                here, f"is {raw.quote(here)}, and each of {count} nodes has {copies // count}; must be that"
            )


def nodes_meet_apart(raw: RawConfig) -> Iterator[Diagnostic]:
    """Models that share machines meet at ports of their own; each takes two."""
    taken: dict[int, str] = {}
    for path, layout in _layouts(raw):
        nodes = layout.get("nodes")
        if not isinstance(nodes, dict) or _size(nodes, "count") == 1:
            continue
        port = _size(nodes, "port") if "port" in nodes else NodesConfig().port
        place = (*path, "nodes", *(["port"] if "port" in nodes else []))
        if other := next((name for first, name in taken.items() if abs(first - port) < 2), None):
            yield raw.diagnostic(
                place, f"has port {port}, and {other} meets there, or beside it; must be two away or more"
            )
        taken[port] = f"models[{path[1]}]"


def the_cache_is_sized_once(raw: RawConfig) -> Iterator[Diagnostic]:
    """The size of the KV cache is said in one place."""
    for path, layout in _layouts(raw):
        cache, at = layout.get("kv_cache"), (*path, "kv_cache")
        if not isinstance(cache, dict):
            continue
        if not cache or {"bytes", "fraction"} <= cache.keys():
            yield raw.diagnostic(
                at, f"has {'both bytes and fraction' if cache else 'neither'}; must have one of the two"
            )
        if "memory_fraction" in layout:
            yield raw.key_diagnostic(at, "is set beside memory_fraction, which it goes over; must be one of the two")
        if raw.find((*path[:-1], "engine", "kv_cache_memory_bytes")) is not None:
            yield raw.key_diagnostic(at, "is set beside engine.kv_cache_memory_bytes; must be one of the two")


def memory_fractions_fit(raw: RawConfig) -> Iterator[Diagnostic]:
    """Models that share devices do not take more than there is; one that names no devices shares them with all."""
    taken: dict[object, float] = {}
    for path, layout in _layouts(raw):
        place = (*path, "memory_fraction")
        fraction = layout.get("memory_fraction")
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            continue
        devices = _devices(layout)
        before = _taken(taken, devices)
        if before + fraction > 1 + _ROUNDING:
            left = f"the models before it leave {max(0.0, 1 - before):.2g}"
            yield raw.diagnostic(place, f"is {raw.quote(place)}, and {left}; the shares together must be 1 or less")
        for device in devices:
            taken[device] = taken.get(device, 0.0) + fraction


_SPLITS = ("tensor_parallel", "pipeline_parallel", "data_parallel")


def _taken(taken: Mapping[object, float], devices: list[object]) -> float:
    """The largest share that is gone of any of the devices."""
    shared = taken.get(_ANY, 0.0)
    others = [each for each in taken if each != _ANY] if _ANY in devices else devices
    return shared + max((taken.get(each, 0.0) for each in others), default=0.0)


def _devices(layout: Mapping[str, Any]) -> list[object]:  # Any: not checked yet
    devices = layout.get("devices")
    return [each for each in devices if isinstance(each, int | str)] if isinstance(devices, list) else [_ANY]


def _ranks_here(layout: Mapping[str, Any]) -> int:  # Any: not checked yet
    nodes = layout.get("nodes")
    count = _size(nodes, "count") if isinstance(nodes, dict) else 1
    if count == 1 and "data_parallel_local" in layout:
        return prod(_size(layout, name) for name in (*_SPLITS[:2], "data_parallel_local"))
    return max(1, prod(_size(layout, name) for name in _SPLITS) // count)


def _size(config: Mapping[str, Any], key: str) -> int:  # Any: not checked yet
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 1


def _layouts(raw: RawConfig) -> Iterator[tuple[DataPath, dict[str, Any]]]:  # Any: not checked yet
    for path, model in raw.models():
        layout = model.get("layout")
        if isinstance(layout, dict):
            yield (*path, "layout"), layout
