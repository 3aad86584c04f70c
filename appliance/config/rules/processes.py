"""
Rules about the server's processes and listeners.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config.draft import Draft
from appliance.config.named import model_entries
from appliance.config.place import Fault
from appliance.config.server import ServerSection
from appliance.models import SECTIONS


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


def an_operator_has_one_process(draft: Draft) -> Iterator[Fault]:
    """
    What an operator loads and unloads is one process's: of several workers, the others would go on as they are.
    """
    path = ("server", "admin")
    workers = draft.find(("server", "workers"))
    if draft.find(path) is True and workers not in (None, 1):
        yield draft.fault(path, "is true, and server.workers is not 1; must be false where there are several workers")
