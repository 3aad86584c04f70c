"""A real engine that is killed, that the kernel kills for its memory, or that stands still."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from faults import confined
from faults.conftest import talks
from faults.ledger import FLAT_BYTES, Ledger, Row, Vitals
from server_process import ServerProcess, has_exited, open_stream, wait_until

pytestmark = pytest.mark.faults

MIB = 1 << 20
STORY: dict[str, Any] = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, "max_tokens": 1900}


def _answers(server: ServerProcess) -> bool:
    return talks(server, "smollm2")


def _dies(server: ServerProcess, row: Row, core: psutil.Process, kill: Callable[[], None]) -> None:
    """The engine ends under a stream: the stream ends, and probes and calls say so."""
    row.before = Vitals.of(server)
    with open_stream(server.port, "/v1/chat/completions", STORY | {"stream": True}) as stream:
        stream.settimeout(60)
        said = stream.recv(1024)
        kill()
        killed = time.monotonic()
        wait_until(lambda: server.get("/livez")[0] == 503, 60, server.log_tail)
        noticed = time.monotonic() - killed
        while piece := stream.recv(65536):
            said += piece
    status, error = server.post("/v1/completions", {"prompt": "Hi"})
    _, body = server.get("/livez")

    assert b"200 OK" in said
    assert b'"error"' in said
    assert status == 503
    assert "is failed" in error["error"]["message"]
    assert has_exited(core)
    row.happened = f"stream ended with an error, liveness 503 in {noticed:.2f} s: {body['models'][0]['reason']}"


def _again(serve: Callable[..., ServerProcess], row: Row, server: ServerProcess) -> None:
    """What a platform does then: the server ends with 0 and leaves nothing, and its successor answers."""
    began, processes = time.monotonic(), server.descendants()
    assert server.stop() == 0, server.log_tail()
    assert all(has_exited(process) for process in processes)
    successor = serve().wait_until_ready()
    assert _answers(successor)
    row.seconds, row.after = time.monotonic() - began, Vitals.of(successor)
    assert "Traceback" not in server.log.read_text().partition("engine.started")[2]
    assert successor.stop() == 0


def test_a_killed_engine_is_noticed_and_nothing_of_it_stays(
    serve: Callable[..., ServerProcess], ledger: Ledger
) -> None:
    """`kill -9` in the middle of a stream."""
    server = serve().wait_until_ready()
    assert _answers(server)
    core = server.engine_core()
    row = ledger.row("engine core: kill -9")
    _dies(server, row, core, core.kill)
    _again(serve, row, server)


def test_a_stopped_engine_is_started_anew_and_nothing_of_it_stays(
    serve: Callable[..., ServerProcess], ledger: Ledger
) -> None:
    """`kill -STOP` in the middle of a stream: the watchdog sees it, and another engine answers behind the same port."""
    settings = ("models.smollm2.engine.stall_seconds=5", "models.smollm2.on_failure=restart")
    server = serve(*settings).wait_until_ready()
    assert _answers(server)
    core, row = server.engine_core(), ledger.row("engine core: SIGSTOP")
    row.before, began = Vitals.of(server), time.monotonic()
    with open_stream(server.port, "/v1/chat/completions", STORY | {"stream": True}) as stream:
        stream.settimeout(120)
        said = stream.recv(1024)
        core.suspend()
        while piece := stream.recv(65536):
            said += piece
    ended = time.monotonic()
    wait_until(lambda: server.get("/readyz")[0] == 503, 10, server.log_tail)
    live, _ = server.get("/livez")
    wait_until(lambda: server.get("/readyz")[0] == 200, 240, server.log_tail)
    assert _answers(server)
    row.seconds, row.after = time.monotonic() - ended, Vitals.of(server)
    _, body = server.get("/readyz")
    row.happened = f"stream ended with an error after {ended - began:.1f} s, liveness stayed"

    assert b"200 OK" in said
    assert b'"error"' in said
    assert live == 200
    assert body["models"][0]["restarts"] == 1
    assert has_exited(core)
    assert row.after.processes == row.before.processes
    # What the first restart opens, all later ones use: `test_restarts_leave_nothing_behind` counts those.
    assert row.after.descriptors <= row.before.descriptors + 16
    assert row.after.rss_bytes < row.before.rss_bytes + 2 * FLAT_BYTES
    assert server.stop() == 0


def test_an_engine_out_of_memory_is_noticed_and_nothing_of_it_stays(
    serve: Callable[..., ServerProcess], ledger: Ledger
) -> None:
    """The kernel's own killer, in a control group that has next to nothing left."""
    with confined.memory_limit() as group:
        server = serve().wait_until_ready()
        assert _answers(server)
        core = server.engine_core()
        prompts = [{"prompt": f"{number} word " * 400, "max_tokens": 300, "ignore_eos": True} for number in range(16)]
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:

            def starve() -> None:
                (group / "memory.limit_in_bytes").write_text(str(4 * MIB))
                (group / "cgroup.procs").write_text(str(core.pid))
                for prompt in prompts:
                    pool.submit(server.post, "/v1/completions", prompt)

            row = ledger.row("engine core: out of memory")
            _dies(server, row, core, starve)
        kills = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
        _again(serve, row, server)

    assert int(kills["oom_kill"]) >= 1
