"""Validators of layouts: sizes against devices and nodes, and models against each other's memory and ports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from appliance.config.layout import LayoutConfig
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import DataPath, Diagnostic, RawConfig

# Shares such as 0.7, 0.2 and 0.1 have no exact sum.
_ROUNDING = 1e-9

# Sizes that keep an engine from taking most of a device, as below a model.
_LIMITS = (("layout", "memory_fraction"), ("layout", "kv_cache"), ("engine", "kv_cache_memory_bytes"))

# The key of the memory that models take without naming devices.
_ANY_DEVICE = "any"


def layouts_are_possible(raw: RawConfig) -> Iterator[Diagnostic]:
    """The sizes of each layout fit each other, its devices and its nodes, as vLLM's `ParallelConfig` requires."""
    for path, layout in _layouts(raw):
        for keys, message in (*_size_errors(layout), *_device_errors(layout), *_node_errors(layout)):
            yield raw.diagnostic((*path, *keys), message)


Error = tuple[tuple[str, ...], str]
"""The keys below a layout, and the message."""


def _size_errors(layout: LayoutConfig) -> Iterator[Error]:
    tensor, context = layout.tensor_parallel, layout.decode_context_parallel
    if tensor % context:
        yield ("decode_context_parallel",), f"is {context}, and tensor_parallel is {tensor}; must divide it"
    copies, local = layout.data_parallel, layout.data_parallel_local
    if local is not None and local > copies:
        yield ("data_parallel_local",), f"is {local}, and data_parallel is {copies}; must be at most that"


def _device_errors(layout: LayoutConfig) -> Iterator[Error]:
    devices, ranks, keys = layout.devices, layout.local_ranks, ("devices",)
    if devices is None:
        return
    if len(set(map(type, devices))) > 1:
        yield keys, "mixes numbers and UUIDs; must be all of one kind"
    elif repeated := [device for index, device in enumerate(devices) if device in devices[:index]]:
        yield keys, f"names {repeated[0]} twice; must name each device once"
    if ranks != len(devices):
        names = ("tensor_parallel", "pipeline_parallel", "data_parallel")
        sizes = [f"{name} {getattr(layout, name)}" for name in names if name in layout.model_fields_set]
        shape = " x ".join(sizes) or "one rank"
        yield keys, f"has {len(devices)}, and the layout ({shape}) takes {ranks} here; must have {ranks}"


def _node_errors(layout: LayoutConfig) -> Iterator[Error]:
    nodes, copies, local = layout.nodes, layout.data_parallel, layout.data_parallel_local
    count = nodes.count
    if nodes.rank >= count and "nodes" in layout.model_fields_set:
        yield ("nodes", "rank"), f"is {nodes.rank}, and there are {count} nodes; must be less than that"
    if count == 1:
        return
    if layout.executor == "ray":
        yield ("nodes",), "is set, and the executor is ray, which finds its own; must be left out"
    if nodes.address is None:
        yield ("nodes",), "has no address; must have it: where the node of rank 0 is"
    if layout.ranks % count:
        yield ("nodes", "count"), f"is {count}, and the layout has {layout.ranks} ranks; must divide them"
    elif copies > 1 and copies % count:
        reason = "several copies have each one machine"
        yield ("nodes", "count"), f"is {count}, and data_parallel is {copies}; must divide it: {reason}"
    elif copies > 1 and local is not None and local != copies // count:
        message = f"is {local}, and each of {count} nodes has {copies // count}; must be that"
        yield ("data_parallel_local",), message


def nodes_have_own_ports(raw: RawConfig) -> Iterator[Diagnostic]:
    """Models that share machines meet at ports of their own; vLLM takes two for each."""
    taken: dict[int, str] = {}
    for path, layout in _layouts(raw):
        nodes = layout.nodes
        if nodes.count == 1:
            continue
        other = next((name for port, name in taken.items() if abs(port - nodes.port) < 2), None)
        if other is not None:
            below = ("nodes", "port") if "port" in nodes.model_fields_set else ("nodes",)
            message = f"has port {nodes.port}, and {other} meets there, or beside it; must be two away or more"
            yield raw.diagnostic((*path, *below), message)
        taken[nodes.port] = f"models[{path[1]}]"


def cache_size_is_set_once(raw: RawConfig) -> Iterator[Diagnostic]:
    """The size of the KV cache is set by one key."""
    for path, layout in _layouts(raw):
        cache, where = layout.kv_cache, (*path, "kv_cache")
        if cache is None:
            continue
        given = cache.model_fields_set
        if len(given) != 1:
            fault = "both bytes and fraction" if given else "neither"
            yield raw.diagnostic(where, f"has {fault}; must have one of the two")
        if layout.memory_fraction is not None:
            yield raw.key_diagnostic(where, "is set beside memory_fraction, which it goes over; must be one of the two")
        if raw.find((*path[:-1], "engine", "kv_cache_memory_bytes")) is not None:
            yield raw.key_diagnostic(where, "is set beside engine.kv_cache_memory_bytes; must be one of the two")


def memory_fractions_fit(raw: RawConfig) -> Iterator[Diagnostic]:
    """The shares of models on one device are at most 1 together; a model without devices may be on any."""
    taken: dict[int | str, float] = {}
    for path, layout in _layouts(raw):
        fraction, where = layout.memory_fraction, (*path, "memory_fraction")
        if fraction is None:
            continue
        devices = layout.devices or (_ANY_DEVICE,)
        before = _most_taken(taken, devices)
        if before + fraction > 1 + _ROUNDING:
            left = f"the models before it leave {max(0.0, 1 - before):.2g}"
            yield raw.diagnostic(where, f"is {raw.quote(where)}, and {left}; the shares together must be 1 or less")
        for device in devices:
            taken[device] = taken.get(device, 0.0) + fraction


def shared_devices_have_limits(raw: RawConfig, *, has_gpus: bool = False) -> Iterator[Diagnostic]:
    """Models on one GPU each have a limit of their memory; vLLM's default is for a model alone.

    Without `has_gpus` the machine may be one whose models share its processor, unless a layout names devices.
    """
    devices = dict(_engine_devices(raw))
    if not has_gpus and all(raw.find((*path, "layout", "devices")) is None for path in devices):
        return
    for path, own in devices.items():
        if any(raw.find((*path, *keys)) is not None for keys in _LIMITS):
            continue
        shared = {f"models[{other[1]}]": own & taken for other, taken in devices.items() if other != path}
        for name, both in shared.items():
            if both:
                fault = f"is not set, and {name} is on device {min(both, key=str)} too"
                remedy = (
                    "must be set for each of them, such as 0.5 and 0.4: without it an engine takes the whole device"
                )
                yield raw.diagnostic((*path, "layout", "memory_fraction"), f"{fault}; {remedy}")
                break


def _engine_devices(raw: RawConfig) -> Iterator[tuple[DataPath, set[int | str]]]:
    """The devices of each model that vLLM computes and whose layout is known before the start."""
    layouts = {path[:-1]: layout for path, layout in _layouts(raw)}
    for path, model in raw.models():
        config = MODEL_CONFIGS.get(str(model.get("class")))
        layout = layouts.get(path, None if "layout" in model else LayoutConfig())
        if config is None or "layout" not in config.model_fields or layout is None:
            continue
        if raw.find((*path, "engine", "python")) or raw.find((*path, "engine", "backend")) == "onnx":
            continue
        yield path, set(layout.devices or range(layout.local_ranks))


def _most_taken(taken: Mapping[int | str, float], devices: Sequence[int | str]) -> float:
    """The largest share that is taken of any of the devices."""
    others = [device for device in taken if device != _ANY_DEVICE] if _ANY_DEVICE in devices else devices
    return taken.get(_ANY_DEVICE, 0.0) + max((taken.get(device, 0.0) for device in others), default=0.0)


def _layouts(raw: RawConfig) -> Iterator[tuple[DataPath, LayoutConfig]]:
    """The layouts of the models that have one of the right shape."""
    for path, model in raw.models():
        if isinstance(layout := model.get("layout"), dict):
            with contextlib.suppress(ValidationError):
                yield (*path, "layout"), LayoutConfig.model_validate(layout)
