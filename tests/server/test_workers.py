"""Several workers on one port: they count together, die alone, and leave together."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from doubles import DoubleConfig, config
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, free_port, has_exited, open_stream, wait_until
from upstreams import Answer, Upstream, event, stream

from appliance.config.server import ServerConfig
from appliance.core.system import usable_cores
from appliance.server.supervisor import worker_count

CHAT = "/v1/chat/completions"
BODY = {"model": "one", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def start(serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path) -> Callable[..., ServerProcess]:
    """Starts a proxy with two workers."""
    file = tmp_path / "proxy.yaml"
    models = (
        f"models: [{{name: one, class: proxy, health: {{timeout_seconds: 600}}, upstreams: [{{url: {upstream.url}}}]}}]"
    )
    file.write_text(f"{models}\nserver: {{workers: 2}}\n")
    return lambda *overrides: serve(*overrides, file=file).wait_until_ready(60)


def _calls(server: ServerProcess) -> float:
    """How often the upstream was asked, as a scrape says."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "appliance_upstream_requests_total")


def _load(server: ServerProcess) -> float:
    """How many requests run, as the worker says that is asked."""
    with urllib.request.urlopen(f"{server.url}/load", timeout=10) as response:
        return float(json.load(response)["server_load"])


def _ask(server: ServerProcess, times: int) -> None:
    for _ in range(times):
        # Each on a connection of its own, so that each may meet another worker.
        assert server.post(CHAT, BODY)[0] == 200


def _workers(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def _states(server: ServerProcess) -> list[bool]:
    """Whether each worker is ready; empty if the one that was asked died."""
    return [worker["ready"] for worker in (server.get("/readyz")[1] or {"workers": []})["workers"]]


def _served(server: ServerProcess, worker: int) -> int:
    """How many requests a worker has answered."""
    return sum(event["event"] == "request.ended" and event["worker"] == worker for event in server.events())


async def _empty_when(event: threading.Event) -> AsyncIterator[bytes]:
    """An answer whose body ends with the event."""
    while not event.is_set():
        await asyncio.sleep(0.02)
    yield b""


def _is_replaced(server: ServerProcess, dead: int, alive: int) -> bool:
    """There are two workers again and all is ready, or there is no more replacing."""
    status, body = server.get("/readyz")
    pids = {worker.get("pid") for worker in body["workers"]} if body else set()
    return server.process.poll() is not None or (status == 200 and dead not in pids and alive in pids)


def test_any_worker_answers_for_all(start: Callable[..., ServerProcess], upstream: Upstream) -> None:
    """Probes show each worker, and whoever is scraped, or asked for the load, has the sum of all."""
    server = start()
    _ask(server, 40)
    wait_until(lambda: all(_calls(server) == 40 for _ in range(5)), 10)
    status, body = server.get("/readyz")
    served_by = [event["worker"] for event in server.events() if event["event"] == "request.ended"]

    assert status == 200
    assert {worker["pid"] for worker in body["workers"]} == {worker.pid for worker in _workers(server)}
    assert [worker["ready"] for worker in body["workers"]] == [True, True]
    assert set(served_by) == {0, 1}
    assert len(served_by) == 40
    upstream.on(CHAT, stream(event("1"), 600.0))
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(open_stream(server.port, CHAT, {**BODY, "stream": True})).recv(1024)
        wait_until(lambda: all(_load(server) == 12 for _ in range(10)), 20)
    wait_until(lambda: all(_load(server) == 0 for _ in range(10)), 20)
    assert server.stop() == 0


def test_a_killed_worker_is_replaced_and_its_counts_stay(
    start: Callable[..., ServerProcess], upstream: Upstream
) -> None:
    """The other one answers all requests until the new one has loaded; readiness stays, and no count goes down."""
    server, may_load = start(), threading.Event()
    _ask(server, 20)
    wait_until(lambda: _calls(server) == 20, 10)
    upstream.on("/v1/models", lambda _: Answer(body=_empty_when(may_load)))
    first, second = _workers(server)
    first.kill()
    wait_until(lambda: _states(server) == [False, True], 10)
    before = _served(server, 0)
    _ask(server, 20)

    assert (server.get("/readyz")[0], _states(server), _served(server, 0)) == (200, [False, True], before)
    may_load.set()
    wait_until(lambda: _states(server) == [True, True], 10)
    assert _is_replaced(server, first.pid, second.pid)
    _ask(server, 20)
    wait_until(lambda: all(_calls(server) == 60 for _ in range(5)), 10)
    wait_until(lambda: _served(server, 0) > before, 10)
    assert server.stop() == 0
    (death,) = [event for event in server.events() if event["event"] == "worker.died"]
    assert (death["pid"], death["reason"]) == (first.pid, "signal 9")


def test_workers_that_die_over_and_over_end_all(start: Callable[..., ServerProcess]) -> None:
    """The platform must see it: exit code 1, and the log says why."""
    server = start()
    for _ in range(5):
        victim, other = _workers(server)
        victim.kill()
        wait_until(lambda pid=victim.pid, other=other.pid: _is_replaced(server, pid, other), 20)  # type: ignore[misc]

    assert server.process.wait(10) == 1
    assert "workers die too often" in server.log_tail()


def test_sigterm_drains_every_worker(start: Callable[..., ServerProcess], upstream: Upstream) -> None:
    """Streams of all workers end whole, new calls are refused, nothing is left, the exit code is 0."""
    server = start()
    slowly: list[bytes | float] = [0.1, event("2")]
    upstream.on(CHAT, stream(event("1"), *slowly * 20, event("[DONE]")))
    workers = _workers(server)
    streams = [open_stream(server.port, CHAT, {**BODY, "stream": True}) for _ in range(8)]
    received = [connection.recv(1024) for connection in streams]
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: all(server.get("/readyz")[0] != 200 for _ in range(5)), 10)
    for index, connection in enumerate(streams):
        with connection:
            while piece := connection.recv(65536):
                received[index] += piece

    assert all(b"[DONE]" in each for each in received)
    assert server.process.wait(15) == 0
    wait_until(lambda: all(has_exited(worker) for worker in workers), 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_all_at_once(
    start: Callable[..., ServerProcess], upstream: Upstream, number: signal.Signals
) -> None:
    """Whoever is in a hurry asks twice."""
    server = start("server.drain_seconds=600")
    upstream.on(CHAT, stream(event("1"), 600.0))
    workers = _workers(server)
    with open_stream(server.port, CHAT, {**BODY, "stream": True}) as connection:
        connection.recv(1024)
        server.process.send_signal(number)
        wait_until(lambda: server.get("/readyz")[0] != 200, 10)
        server.process.send_signal(number)

        assert server.process.wait(30) == 128 + number
    wait_until(lambda: all(has_exited(worker) for worker in workers), 10)


def test_no_worker_outlives_a_killed_parent(start: Callable[..., ServerProcess]) -> None:
    """`kill -9` of the parent frees the port."""
    server = start()
    workers = _workers(server)
    server.process.kill()

    wait_until(lambda: all(has_exited(worker) for worker in workers), 10)
    assert len(workers) == 2


def test_a_config_that_cannot_start_ends_with_its_reason(
    start: Callable[..., ServerProcess], serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """A taken port is told once, before there are workers."""
    first = start()
    second = serve(f"server.port={first.port}", file=tmp_path / "proxy.yaml")

    assert second.process.wait(20) == 1
    assert f"port {first.port}" in second.log_tail()
    assert "worker.died" not in second.log_tail()


class _Light(DoubleConfig):
    has_engine: ClassVar[bool] = False


def test_auto_is_a_worker_for_each_core_where_nothing_computes() -> None:
    """An engine wants one process; what only forwards takes what there is."""
    auto = ServerConfig(workers="auto")

    assert worker_count(config(_Light(name="one"), server=auto)) == usable_cores()
    assert worker_count(config(_Light(name="one"), DoubleConfig(name="two"), server=auto)) == 1
    assert worker_count(config(_Light(name="one"), server=ServerConfig(workers=3))) == 3
    assert worker_count(config(_Light(name="one"))) == 1


def test_a_probe_port_answers_for_all_too(start: Callable[..., ServerProcess]) -> None:
    """Its listener is shared as the other one is."""
    port = free_port()
    server = start(f"server.probe_port={port}")
    status, body = server.get("/readyz", port=port)

    assert status == 200
    assert len(body["workers"]) == 2
    assert json.dumps(body["models"])
    assert server.stop() == 0
