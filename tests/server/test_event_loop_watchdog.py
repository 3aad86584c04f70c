"""A model's code that blocks the event loop: it is named, probes go on, and signals end the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, free_port, wait_until

MODEL = """
import time
from appliance.openai import OpenAIGenerativeModel


class Blocking(OpenAIGenerativeModel):
    async def create_chat_completion(self, request, raw_request=None, context=None):
        if request.max_tokens:
            time.sleep(request.max_tokens)
        return {"choices": [{"message": {"role": "assistant", "content": "done"}}]}
"""

# What a container is told to end by, while Python code that never returns has the event loop.
PROGRAM = """
import asyncio, time
from appliance.server.shutdown import Signals

async def main():
    Signals(None, lambda: 0.5)
    print("ready", flush=True)
    BLOCK

asyncio.run(main())
"""


@pytest.fixture
def blocking(
    serve: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ServerProcess, int]]:
    """A server whose model blocks for as many seconds as it is asked for tokens, and its probe port."""
    (tmp_path / "blocking.py").write_text(MODEL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "blocking.yaml"
    file.write_text("models: [{name: one, class: generative, engine: {python: 'blocking:Blocking'}}]\n")
    port = free_port()
    server = serve(f"server.probe_port={port}", "server.stall_seconds=2", file=file)
    yield server.wait_until_ready(60), port
    server.process.kill()


def _block(server: ServerProcess, seconds: int) -> None:
    body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": seconds}
    threading.Thread(target=server.post, args=("/v1/chat/completions", body), daemon=True).start()


def _events(server: ServerProcess, name: str) -> list[dict[str, Any]]:
    return [event for event in server.events() if event["event"] == name]


def test_probes_answer_while_a_models_code_blocks_the_event_loop(blocking: tuple[ServerProcess, int]) -> None:
    """
    Readiness and then liveness say how long it has been blocked, the log says by which function, and both recover.
    """
    server, port = blocking
    assert server.get("/livez", port)[0] == 200
    _block(server, 8)

    wait_until(lambda: server.get("/livez", port)[0] == 503, 60, server.log_tail)
    status, body = server.get("/readyz", port)
    assert status == 503
    assert "the event loop has been blocked for" in body["reason"]
    assert body["models"][0]["state"] == "ready"
    assert b"appliance_model_state" in server.stream("/metrics", None, port=port)
    wait_until(lambda: server.get("/livez", port)[0] == server.get("/readyz", port)[0] == 200, 60, server.log_tail)
    wait_until(lambda: bool(_events(server, "event_loop.recovered")), 10, server.log_tail)
    (blocked,) = _events(server, "event_loop.blocked")
    assert blocked["blocked_seconds"] >= 2
    assert blocked["function"].startswith("create_chat_completion ")
    assert any("create_chat_completion" in frame and "time.sleep" in frame for frame in blocked["frames"])


def test_a_second_signal_ends_a_server_that_is_blocked(blocking: tuple[ServerProcess, int]) -> None:
    """At once: signals wait for nothing that the event loop does."""
    server, _ = blocking
    _block(server, 600)
    wait_until(lambda: bool(_events(server, "event_loop.blocked")), 60, server.log_tail)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(_events(server, "signal.received")) == 1, 10, server.log_tail)
    server.process.send_signal(signal.SIGTERM)

    assert server.process.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize("block", ["time.sleep(600)", "while True: pass", "await asyncio.sleep(600)"])
def test_a_server_that_does_not_stop_in_time_is_ended(block: str) -> None:
    """Whatever keeps it: Python code, a call that waits, or a task that goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("BLOCK", block)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) == 1
        finally:
            process.kill()
