"""Bodies of the probes: every state that needs no engine, and who sees how much of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from contract.golden import Golden
from contract.server import Server, streamed_chat
from contract.stalled import stalled
from server_process import wait_until
from upstreams import Upstream

HOLDERS = {
    "nobody": {},
    "a wrong key": {"Authorization": "Bearer key-of-nobody"},
    "a key for every model": {"Authorization": "Bearer key-for-everything-0123456789abcdef"},
    "an operator": {"Authorization": "Bearer key-of-an-operator-0123456789abcdef"},
    "a key for an alias": {"Authorization": "Bearer key-for-vectors-0123456789abcdef"},
}


@pytest.fixture(scope="module")
def states(start: Callable[..., Server]) -> Iterator[Server]:
    """The server of `states.yaml` before its first model is ready."""
    with Upstream() as upstream:
        upstream.on("/vocabulary.txt", stalled)
        server = start("states.yaml", "server.drain_delay_seconds=4", UPSTREAM=upstream.origin)
        for model, state in (("gone", "unavailable"), ("adapted", "ready"), ("ready", "proving")):
            server.wait_until(model, state)
        wait_until(lambda: _total_bytes(server) == 4000, 30, server.log_tail)
        yield server


def _total_bytes(server: Server) -> object:
    """The size of what is fetched, None until its store has said it."""
    _, body = server.get("/readyz", port=server.probe_port)
    (model,) = (each for each in body["models"] if each["name"] == "fetched")
    return (model.get("progress") or {}).get("total_bytes")


def _probes(server: Server) -> dict[str, Any]:
    """Readiness as it is, and the statuses of the other probes, whose bodies hold the same models."""
    live, ready, started = (server.answer("GET", path) for path in ("/livez", "/readyz", "/startupz"))
    assert live["body"]["models"] == ready["body"]["models"] == started["body"]["models"]
    shown = {path: {**each, "body": each["body"]["status"]} for path, each in (("livez", live), ("startupz", started))}
    return {**shown, "readyz": ready}


def _changes(scenes: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """The scenes, in each of which a model is shown only where it is not as in the one before."""
    before: list[object] = []
    for scene in scenes.values():
        body = scene["readyz"]["body"]
        models, body["models"] = body["models"], [each for each in body["models"] if each not in before]
        before = models
    return dict(scenes)


def test_probes_describe_every_state(states: Server, golden: Golden) -> None:
    """From the start to SIGTERM: pending, fetching, loading, proving, ready, failed, draining, unloaded, stopped."""
    seen = {"the first one proves itself, others are pending and fetching": _probes(states)}

    states.open_gate("answer")
    states.wait_until("slow", "loading")
    seen["one is ready, one failed, one loads"] = _probes(states)
    states.open_gate("load")
    states.wait_until("slow", "ready")
    seen["all that can be are ready"] = _probes(states)

    states.close_gate("answer")
    with streamed_chat(states, "ready"), ThreadPoolExecutor() as pool:
        unload = pool.submit(states.answer, "POST", "/v2/repository/models/ready/unload", body={})
        states.wait_until("ready", "draining")
        seen["one is unloaded while it has a request"] = _probes(states)
        states.open_gate("answer")
    seen["one is unloaded"] = _probes(states) | {"answer to the unload": unload.result()}
    load = states.answer("POST", "/v2/repository/models/ready/load", body={})
    states.wait_until("ready", "ready")
    seen["it is loaded again"] = _probes(states) | {"answer to the load": load}

    states.process.terminate()
    states.wait_until("slow", "draining")
    seen["SIGTERM came"] = _probes(states)
    golden.check("probes_states.json", _changes(seen))
    assert states.process.wait(30) == 0, states.log_tail()


def test_probes_show_each_holder_of_a_key_what_it_may_know(keyed_server: Server, golden: Golden) -> None:
    """The reason of a failure is for operators, names of models for keys that may ask them, strangers see a status."""
    seen = {holder: keyed_server.answer("GET", "/readyz", headers=key) for holder, key in HOLDERS.items()}
    seen["the probe port, without a key"] = keyed_server.answer("GET", "/readyz", port=keyed_server.probe_port)

    golden.check("probes_by_key.json", seen)


def test_probes_have_all_their_names(open_server: Server, golden: Golden) -> None:
    """Other paths, HEAD, pages of other origins, Open Inference Protocol."""
    foreign = {"Origin": "https://elsewhere.example"}
    seen = {
        f"{method} {path}": open_server.answer(method, path)
        for method in ("GET", "HEAD")
        for path in ("/health", "/ping", "/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready")
    }
    for path in ("/health", "/ping"):
        assert seen[f"GET {path}"].pop("body")["models"]
    seen["GET /readyz from a page of another origin"] = open_server.answer("GET", "/readyz", headers=foreign)
    seen["GET /v2/models/late/ready"] = open_server.answer("GET", "/v2/models/late/ready")

    golden.check("probes_names.json", seen)


def test_probes_of_workers_name_each(start: Callable[..., Server], session_upstream: Upstream, golden: Golden) -> None:
    """Readiness lists the processes."""
    server = start("workers.yaml", UPSTREAM=session_upstream.url)
    wait_until(lambda: server.get("/readyz")[0] == 200, 30, server.log_tail)

    ready = server.answer("GET", "/readyz")

    assert server.stop() == 0, server.log_tail()
    golden.check("probes_workers.json", ready)
