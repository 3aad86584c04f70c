"""Rules about the server's processes and listeners."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import RawConfig
from appliance.config.server import ServerConfig
from appliance.config.source_location import Diagnostic


def listeners_are_apart(raw: RawConfig) -> Iterator[Diagnostic]:
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


def workers_share_what_can_be_shared(raw: RawConfig) -> Iterator[Diagnostic]:
    """Several workers share an engine of vLLM's on one machine, which takes each of them in once."""
    path = ("server", "workers")
    workers = raw.find(path)
    if not isinstance(workers, int) or workers == 1:
        return
    for place, model in raw.models():
        config = MODEL_CONFIGS.get(str(model.get("class")))
        if config is None or not config.has_engine:
            continue
        engine, name = model.get("engine"), f"models[{place[-1]}]"
        if isinstance(engine, dict) and "python" in engine:
            fault = f"is {raw.quote(path)}, and {name} has engine.python, which computes in one process"
            yield raw.diagnostic(path, f"{fault}; must be 1 or auto")
        if isinstance(count := raw.find((*place, "layout", "nodes", "count")), int) and count > 1:
            fault = f"is {raw.quote(path)}, and {name} is spread over {count} nodes, which takes one process on each"
            yield raw.diagnostic(path, f"{fault}; must be 1 or auto")
        if model.get("on_failure") == "restart":
            fault = f"is restart, and server.workers is {workers}: a new engine would take none of them in"
            yield raw.diagnostic((*place, "on_failure"), f"{fault}; must be stay or exit")


def an_operator_has_one_process(raw: RawConfig) -> Iterator[Diagnostic]:
    """What an operator loads and unloads is one process's: of several workers, the others would go on as they are."""
    path = ("server", "admin")
    workers = raw.find(("server", "workers"))
    if raw.find(path) is True and workers not in (None, 1):
        yield raw.diagnostic(
            path, "is true, and server.workers is not 1; must be false where there are several workers"
        )
