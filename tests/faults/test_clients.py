"""Clients that hold on to what they have: idle ones, slow ones, and one that reads a byte a second."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from faults.conftest import talks
from faults.crowd import crowd
from faults.ledger import FLAT_BYTES, MIB, Ledger
from server_process import ServerProcess, free_port, open_stream, wait_until
from upstreams import Upstream

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
# Two that are as fast as they are read: one answers from elsewhere, one in the server's own process.
FASTEST = ("elsewhere", "talker")
FAST = """
models:
- name: talker
  class: generative
  engine: {{python: "tests.faults.talker:Talker"}}
  limits: {{concurrent: {most}}}
- name: elsewhere
  class: proxy
  upstreams: [{{url: "http://127.0.0.1:{port}"}}]
  limits: {{concurrent: {most}}}
"""
BABBLE = {"stream": True, "messages": [{"role": "user", "content": "babble"}]}
IDLE = 10_000
# Of a connection that only stands there: buffers of the kernel not among it.
_BYTES_EACH = 40_000


@pytest.mark.faults
def test_ten_thousand_idle_connections_change_nothing(
    serve: Callable[..., ServerProcess], scripted: Upstream, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few descriptors to begin with, as shells give them: new clients are answered, and probes at both ports."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < IDLE + 1000:
        pytest.skip(f"needs a limit of {IDLE + 1000} open files")
    monkeypatch.setenv("UPSTREAM", scripted.origin)
    probe_port = free_port()
    with _few_descriptors():
        server = serve(f"server.probe_port={probe_port}", file=Path(__file__).with_name("models.yaml"))
    server.wait_until_ready(60)

    with ledger.survived(f"{IDLE} idle connections", server, talks) as row:
        with crowd(server.port, IDLE) as count:
            wait_until(lambda: psutil.Process(server.process.pid).num_fds() > IDLE, 60)
            began = time.monotonic()
            assert talks(server)
            assert server.get("/readyz")[0] == server.get("/livez", port=probe_port)[0] == 200
            took = time.monotonic() - began
            peak = psutil.Process(server.process.pid).memory_info().rss
        row.happened = f"{count} held, peak {peak // MIB} MiB; 1 answer and 2 probes in {took:.2f} s"

    assert row.before is not None
    assert count == IDLE
    assert peak < row.before.rss_bytes + IDLE * _BYTES_EACH


@contextlib.contextmanager
def _few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.faults)])
@pytest.mark.parametrize("part", ["head", "body"])
def test_clients_that_never_finish_their_request_hold_nobody_up(
    sound: ServerProcess, ledger: Ledger, part: str, count: int
) -> None:
    """
    Some send a header now and then, some a byte of a body: others are answered meanwhile, and nothing stays of them.
    """
    said = HEAD if part == "head" else HEAD + b"Content-Length: 1000000\r\n\r\n{"
    drop = b"X-A: b\r\n" if part == "head" else b" "
    with ledger.survived(f"slow-loris: {count} slow {part}s", sound, talks) as row, contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", sound.port), timeout=10)) for _ in range(count)
        ]
        for connection in held:
            connection.sendall(said)
        good = 0
        for _ in range(5):
            for connection in held:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(drop)
            good += talks(sound)
        row.happened = f"{good} of 5 others answered"

    assert good == 5


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.faults)])
def test_a_client_that_reads_a_byte_a_second_costs_nothing(sound: ServerProcess, ledger: Ledger, seconds: int) -> None:
    """Of a stream without an end only so much is made as fits into buffers, and others are answered meanwhile."""
    process = psutil.Process(sound.process.pid)
    body = {"model": "talker", "stream": True, "messages": [{"role": "user", "content": "flood"}]}
    with ledger.survived(f"a byte a second for {seconds} s", sound, talks) as row:
        with open_stream(sound.port, "/v1/chat/completions", body) as stream:
            assert stream.recv(1)
            good, peak = 0, 0
            for _ in range(seconds):
                time.sleep(1)
                assert stream.recv(1)
                good += talks(sound)
                peak = max(peak, process.memory_info().rss)
        wait_until(lambda: not any(model["running"] for model in sound.get("/readyz")[1]["models"]), 10, sound.log_tail)
        row.happened = f"{good} of {seconds} others answered, peak {peak // MIB} MiB"

    assert row.before is not None
    assert good == seconds
    assert peak < row.before.rss_bytes + FLAT_BYTES


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.faults)])
def test_fast_streams_end_when_their_clients_leave(
    serve: Callable[..., ServerProcess], ledger: Ledger, tmp_path: Path, count: int
) -> None:
    """Half of them come from an upstream that is always ahead, half from a model that waits for nothing: the work of
    each ends, and the server answers as before.
    """
    port, file = free_port(), tmp_path / "fast.yaml"
    file.write_text(FAST.format(port=port, most=2 * count))
    with _firehose(port) as upstream:
        server = serve("server.drain_seconds=1", file=file).wait_until_ready()
        with ledger.survived(f"{count} fast streams are left", server, talks) as row:
            streams = [
                open_stream(server.port, "/v1/chat/completions", BABBLE | {"model": model})
                for model in FASTEST * (count // 2)
            ]
            begun = [stream.recv(65536) for stream in streams]
            assert _connections(upstream) >= count // 2
            for stream in streams:
                stream.close()
            # Without their clients such streams went on for ever: this is no measure of how quick the end is.
            seconds = wait_until(lambda: _connections(upstream) <= 1 and not _running(server), 60, server.log_tail)
            row.happened = f"all over after {seconds:.1f} s"

    assert all(each.startswith(b"HTTP/1.1 200") for each in begun)


def _running(server: ServerProcess) -> int:
    """Requests under way; more than none where the server does not even say."""
    _, body = server.get("/readyz")
    return sum(model["running"] for model in body["models"]) if body else 1


def _connections(upstream: psutil.Process) -> int:
    """Those under way, and the one that may be kept for the next request."""
    return sum(each.status == psutil.CONN_ESTABLISHED for each in upstream.net_connections("tcp"))


@contextlib.contextmanager
def _firehose(port: int) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("firehose.py"), str(port)])
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait(30)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_ours(sound: ServerProcess) -> None:
    """It is logged as a client that left: whoever counts 5xx counts what the server did."""
    before = len(sound.events())
    with socket.create_connection(("127.0.0.1", sound.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        time.sleep(0.2)

    wait_until(lambda: any(event["event"] == "request.ended" for event in sound.events()[before:]), 10)
    assert [event["status"] for event in sound.events()[before:] if event["event"] == "request.ended"] == [499]
