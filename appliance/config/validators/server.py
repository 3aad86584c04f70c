"""Validators of the server: its ports, its workers, and its API keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import DataPath, Diagnostic, RawConfig, items
from appliance.config.server import ServerConfig, digest_of, is_loopback
from appliance.config.validators.models import names


def ports_are_distinct(raw: RawConfig) -> Iterator[Diagnostic]:
    """Each listener has a port of its own."""
    server = raw.find(("server",))
    if not isinstance(server, dict):
        return
    ports = {"port": ServerConfig().port} | server
    seen: dict[int, str] = {}
    for name in ("port", "probe_port", "grpc_port"):
        path, port = ("server", name), ports.get(name)
        if isinstance(port, int) and port in seen:
            yield raw.diagnostic(path, f"is {raw.quote(path)}, as {seen[port]} is; must be another port")
        elif isinstance(port, int):
            seen[port] = f"server.{name}"


def workers_can_share_engines(raw: RawConfig) -> Iterator[Diagnostic]:
    """Several workers share vLLM engines of this machine, each of which accepts a worker once."""
    path = ("server", "workers")
    workers = raw.find(path)
    if not isinstance(workers, int) or workers == 1:
        return
    for model_path, model in raw.models():
        config = MODEL_CONFIGS.get(str(model.get("class")))
        if config is None or not config.has_engine:
            continue
        name = f"models[{model_path[-1]}]"
        if raw.find((*model_path, "engine", "python")) is not None:
            message = f"is {raw.quote(path)}, and {name} has engine.python, which computes in one process"
            yield raw.diagnostic(path, f"{message}; must be 1 or auto")
        if isinstance(count := raw.find((*model_path, "layout", "nodes", "count")), int) and count > 1:
            message = f"is {raw.quote(path)}, and {name} is spread over {count} nodes, which takes one process on each"
            yield raw.diagnostic(path, f"{message}; must be 1 or auto")
        if model.get("on_failure") == "restart":
            message = f"is restart, and server.workers is {workers}, whose connections a new engine does not accept"
            yield raw.diagnostic((*model_path, "on_failure"), f"{message}; must be stay or exit")


def admin_is_safe(raw: RawConfig) -> Iterator[Diagnostic]:
    """Loading and unloading changes one process, and is for clients with a key, unless only known ones can connect."""
    path = ("server", "admin")
    if raw.find(path) is not True:
        return
    if raw.find(("server", "workers")) not in (None, 1):
        message = "is true, and server.workers is not 1; must be false where there are several workers"
        yield raw.diagnostic(path, message)
    keys = [key for _, key in _api_keys(raw)]
    is_local = is_loopback(str(raw.find(("server", "host")) or ServerConfig().host))
    if keys and not any(key.get("admin") is True for key in keys):
        message = "is true, and no key has admin: true; must be false, or one of server.api_keys have it"
        yield raw.diagnostic(path, message)
    elif not keys and not is_local and raw.find(("server", "tls", "client_ca")) is None:
        yield raw.diagnostic(
            path,
            "is true, and whoever reaches the port could unload models; must have a key with admin: true among "
            "server.api_keys, or server.host: 127.0.0.1, or server.tls.client_ca",
        )


def keys_are_distinct(raw: RawConfig) -> Iterator[Diagnostic]:
    """Each key has its own name and its own value."""
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for path, key in _api_keys(raw):
        name, digest, index = key.get("name"), _digest(key), int(path[-1])
        if isinstance(name, str) and (first := names.setdefault(name, index)) != index:
            message = f"is that of server.api_keys[{first}]; must be unlike all other names"
            yield raw.diagnostic((*path, "name"), message)
        if digest is not None and (first := digests.setdefault(digest, index)) != index:
            where = (*path, "value" if "value" in key else "sha256")
            yield raw.diagnostic(where, f"is the key of server.api_keys[{first}]; each must be another")


def keys_name_models(raw: RawConfig) -> Iterator[Diagnostic]:
    """The models that a key may use are in the file."""
    known = {name for _, name in names(raw)}
    for path, key in _api_keys(raw):
        for index, name in items(key.get("models")):
            where = (*path, "models", index)
            if isinstance(name, str) and name not in known:
                message = f"is {raw.quote(where)}, which no model has; {raw.hint(where, 'models', known)}"
                yield raw.diagnostic(where, message)


def _api_keys(raw: RawConfig) -> Iterator[tuple[DataPath, dict[str, Any]]]:  # Any: not checked yet
    path = ("server", "api_keys")
    for index, key in items(raw.find(path)):
        if isinstance(key, dict):
            yield (*path, index), key


def _digest(key: dict[str, Any]) -> str | None:  # Any: not checked yet
    if isinstance(value := key.get("value"), str):
        return digest_of(value.encode(errors="replace"))
    digest = key.get("sha256")
    return digest.lower() if isinstance(digest, str) else None
