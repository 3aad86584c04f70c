"""
Rules about several keys at once, which a schema cannot say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from appliance.config import adapters, keys
from appliance.config.draft import Draft
from appliance.config.named import model_entries, name_paths
from appliance.config.place import DataPath, Fault
from appliance.config.server import ServerSection
from appliance.models import SECTIONS
from appliance.nearest import did_you_mean, known_ones
from appliance.storage import SCHEMES
from appliance.storage.uri import scheme_of
from appliance.upstream.address import is_possible
from appliance.upstream.headers import FRAMING, HOP_BY_HOP
from appliance.upstream.section import HEADER_NAME
from appliance.vllm_engine.section import OWNED, EngineSection

# Shares such as 0.7, 0.2 and 0.1 are no exact sum.
_ROUNDING = 1e-9
_UNMOVED = "which belongs to one connection or its body; must be left out"

# The keys of a model that a class of the user's computes.
_OF_PYTHON = frozenset({"name", "aliases", "class", "storage", "engine", "limits", "slo", "on_failure"})
_ADDRESS = "must be a URL with a host and a port that there can be, such as http://llm:8000/v1"

Rule = Callable[[Draft], Iterator[Fault]]


def names_are_unique(draft: Draft) -> Iterator[Fault]:
    """
    A name leads to one model, be it a model's own, an alias or an adapter's.
    """
    seen: dict[str, DataPath] = {}
    for path in name_paths(draft):
        name = draft.get(path)
        if not isinstance(name, str):
            continue
        if name in seen:
            line = draft.place(seen[name]).line
            where = "" if line is None else f" on line {line}"
            yield draft.fault(path, f"{draft.quote(path)} is taken{where}; must be unlike all other names and aliases")
        seen.setdefault(name, path)


def listeners_are_apart(draft: Draft) -> Iterator[Fault]:
    """
    Each listener has a port of its own.
    """
    server = draft.find(("server",))
    if not isinstance(server, dict):
        return
    ports = {"port": ServerSection().port} | server
    seen: dict[int, str] = {}
    for name in ("port", "probe_port", "grpc_port"):
        path, port = ("server", name), ports.get(name)
        if isinstance(port, int) and port in seen:
            yield draft.fault(path, f"is {draft.quote(path)}, as {seen[port]} is; must be another port")
        elif isinstance(port, int):
            seen[port] = f"server.{name}"


def engines_have_one_process(draft: Draft) -> Iterator[Fault]:
    """
    An engine belongs to one process: several workers would load its model several times.
    """
    path = ("server", "workers")
    workers = draft.find(path)
    if not isinstance(workers, int) or workers == 1:
        return
    for place, model in model_entries(draft):
        section = SECTIONS.get(str(model.get("class")))
        if section is not None and section.has_engine:
            name = f"models[{place[-1]}], of class {model['class']}, has an engine"
            yield draft.fault(path, f"is {draft.quote(path)}, and {name}; must be 1 or auto")
            return


def engine_arguments_are_free(draft: Draft) -> Iterator[Fault]:
    """
    What the config says in a place of its own is not said again among vLLM's arguments.
    """
    for path, model in model_entries(draft):
        engine = model.get("engine")
        args = engine.get("args") if isinstance(engine, dict) and "python" not in engine else None
        for name in args if isinstance(args, dict) else ():
            if name in OWNED:
                yield draft.key_fault((*path, "engine", "args", name), f"is not set here; {OWNED[name]}")


def schemes_are_known(draft: Draft) -> Iterator[Fault]:
    """
    Whatever is to be brought has a scheme that can be brought, or is a plain path.
    """
    for path in _uri_paths(draft):
        uri = draft.find(path)
        scheme = scheme_of(uri) if isinstance(uri, str) else None
        if scheme is not None and scheme not in SCHEMES:
            # A hint at what is near would tell what a secret is.
            near = "" if draft.secrets(path) else did_you_mean(scheme, SCHEMES)
            hint = near or f"{known_ones('schemes', SCHEMES)}, and plain paths need none"
            yield draft.fault(path, f"is {draft.quote(path)}, of an unknown scheme; {hint}")


def memory_fractions_fit(draft: Draft) -> Iterator[Fault]:
    """
    Models that share devices do not take more than there is.
    """
    taken = 0.0
    for path, _ in model_entries(draft):
        place = (*path, "layout", "memory_fraction")
        fraction = draft.find(place)
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            continue
        if taken + fraction > 1 + _ROUNDING:
            left = f"the models before it leave {max(0.0, 1 - taken):.2g}"
            yield draft.fault(place, f"is {draft.quote(place)}, and {left}; the shares together must be 1 or less")
        taken += fraction


def encoder_keys_fit_the_task(draft: Draft) -> Iterator[Fault]:
    """
    What shapes embeddings is only said of a model that embeds.
    """
    for path, model in model_entries(draft):
        task = model.get("task")
        if model.get("class") != "encoder" or task not in ("rerank", "classify", "token_classify"):
            continue
        for key in ("normalize", "dimensions"):
            if key in model:
                yield draft.key_fault((*path, key), f"shapes embeddings, and the task is {task}; must be left out")


def headers_may_travel(draft: Draft) -> Iterator[Fault]:
    """
    What belongs to one connection, or follows from the body, is not a header that upstreams can be sent.
    """
    for path in _header_paths(draft):
        headers = draft.find(path)
        for index, name in _items(headers):
            if isinstance(name, str) and name.lower() in HOP_BY_HOP | FRAMING:
                yield draft.fault((*path, index), f"is {draft.quote((*path, index))}, {_UNMOVED}")
        for name in headers if isinstance(headers, dict) else ():
            if re.fullmatch(HEADER_NAME, name) is None:
                yield draft.key_fault((*path, name), "is no name of a header; must be letters, digits, - and _")
            # Some servers are told apart by the name that is asked for.
            if name.lower() in (HOP_BY_HOP | FRAMING) - {"host"}:
                yield draft.key_fault((*path, name), f"is not set here, {_UNMOVED}")


def engines_name_their_class(draft: Draft) -> Iterator[Fault]:
    """
    A key that is nearly `python` is not one of vLLM's, for which the schema takes it.
    """
    for path, model in model_entries(draft):
        engine = model.get("engine")
        for key in engine if isinstance(engine, dict) and "python" not in engine else ():
            hint = did_you_mean(str(key), ("python", *EngineSection.model_fields))
            if '"python"' in hint:
                yield draft.key_fault((*path, "engine", key), f"unknown key; {hint}")


def python_models_have_their_own_keys(draft: Draft) -> Iterator[Fault]:
    """
    What shapes vLLM is not said of a model that a class of the user's computes.
    """
    for path, model in model_entries(draft):
        engine, section = model.get("engine"), SECTIONS.get(str(model.get("class")))
        if not isinstance(engine, dict) or "python" not in engine or section is None:
            continue
        known = {field.alias or name for name, field in section.model_fields.items()}
        for key in known & model.keys() - _OF_PYTHON:
            yield draft.key_fault((*path, key), "shapes vLLM, and engine.python computes; must go under engine.args")


def an_operator_has_one_process(draft: Draft) -> Iterator[Fault]:
    """
    What an operator loads and unloads is one process's: of several workers, the others would go on as they are.
    """
    path = ("server", "admin")
    workers = draft.find(("server", "workers"))
    if draft.find(path) is True and workers not in (None, 1):
        yield draft.fault(path, "is true, and server.workers is not 1; must be false where there are several workers")


def addresses_are_possible(draft: Draft) -> Iterator[Fault]:
    """
    Upstreams have a host, and a port that there can be.
    """
    for section in _upstream_paths(draft):
        url = draft.find((*section, "url"))
        if isinstance(url, str) and not is_possible(url):
            yield draft.fault((*section, "url"), f"is {draft.quote((*section, 'url'))}; {_ADDRESS}")


RULES: tuple[Rule, ...] = (
    names_are_unique,
    listeners_are_apart,
    engines_have_one_process,
    an_operator_has_one_process,
    keys.keys_are_apart,
    keys.keys_lead_to_models,
    keys.an_operator_has_a_key,
    engine_arguments_are_free,
    schemes_are_known,
    memory_fractions_fit,
    encoder_keys_fit_the_task,
    engines_name_their_class,
    python_models_have_their_own_keys,
    headers_may_travel,
    addresses_are_possible,
    adapters.targets_answer,
    adapters.templates_render,
    adapters.paths_compile,
)
"""Every rule; each takes a draft that need not be right in any other way."""


def _uri_paths(draft: Draft) -> Iterator[DataPath]:
    for path, model in model_entries(draft):
        yield (*path, "storage", "uri")
        yield (*path, "protocol", "tokenizer", "uri")
        yield (*path, "protocol", "chat", "tokenizer", "uri")
        yield from ((*path, "adapters", index, "storage", "uri") for index, _ in _items(model.get("adapters")))


def _header_paths(draft: Draft) -> Iterator[DataPath]:
    for path, _ in model_entries(draft):
        yield from ((*path, "headers", key) for key in ("forward", "set"))
    yield from ((*path, "headers") for path in _upstream_paths(draft))


def _upstream_paths(draft: Draft) -> Iterator[DataPath]:
    for path, model in model_entries(draft):
        yield from ((*path, "upstreams", index) for index, _ in _items(model.get("upstreams")))
        yield (*path, "target")


def _items(value: Any) -> Iterator[tuple[int, Any]]:  # Any: not checked yet
    yield from enumerate(value if isinstance(value, list) else ())
