"""Engines that die or stall while they serve, and what becomes of the server around them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from server_process import ServerProcess, environment, has_exited, open_stream, wait_until

STORY = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, "stream": True, "temperature": 0}
QUESTION = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
TALE = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write a long story."}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 1900,
}
CHAT = "/v1/chat/completions"

STALL_SECONDS = 4


@pytest.fixture(scope="module")
def restarting(tmp_path_factory: pytest.TempPathFactory, chat_file: Path) -> Iterator[ServerProcess]:
    """A real engine that is started anew when it dies."""
    served = ServerProcess(
        chat_file,
        tmp_path_factory.mktemp("restarting") / "server.log",
        "models.smollm2.on_failure=restart",
        f"models.smollm2.engine.stall_seconds={STALL_SECONDS}",
        "models.smollm2.engine.max_num_seqs=2",
    ).wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


class _Liveness:
    """Asks for liveness without a pause, and notes every answer but 200."""

    def __init__(self, server: ServerProcess) -> None:
        self.others: list[int] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            status, _ = self._server.get("/livez")
            if status != 200:
                self.others.append(status)
            time.sleep(0.05)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _restarts(server: ServerProcess) -> int:
    _, body = server.get("/readyz")
    restarts: int = body["models"][0]["restarts"]
    return restarts


def _metric(server: ServerProcess) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        found = re.search(r'appliance_model_restarts_total\{model="smollm2"\} (\S+)', response.read().decode())
    assert found is not None
    return float(found.group(1))


def _rest(server: ServerProcess, begun: bytes, stream: object) -> bytes:
    assert hasattr(stream, "recv")
    while piece := stream.recv(65536):
        begun += piece
    return begun


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)],
    ids=lambda number: number.name,
)
def test_an_engine_that_dies_or_stalls_is_started_anew_behind_an_open_port(
    restarting: ServerProcess, number: signal.Signals
) -> None:
    """Streams under way end with an error event, calls are told to wait, liveness stays, and it answers again."""
    server, before = restarting, _restarts(restarting)
    core = server.engine_core()
    with _Liveness(server) as liveness:
        with (
            open_stream(server.port, CHAT, STORY | {"max_tokens": 1900}) as stream,
            open_stream(server.port, "/v1/messages", TALE) as message,
        ):
            received, message_received = stream.recv(1024), message.recv(1024)
            core.send_signal(number)
            received = _rest(server, received, stream)
            message_received = _rest(server, message_received, message)
        wait_until(lambda: server.get("/readyz")[0] == 503, 10)
        refused, error = server.post("/v1/completions", QUESTION)
        wait_until(lambda: server.get("/readyz")[0] == 200, 120, server.log_tail)
        answered, body = server.post("/v1/completions", QUESTION)

    assert b"200 OK" in received
    assert b'"message": "The model failed on this request' in received
    assert b'"finish_reason":"abort"' not in received
    assert b'"message": "The model failed on this request' in message_received
    assert (refused, error["error"]["code"]) == (503, "model_not_ready")
    assert answered == 200
    assert "Paris" in body["choices"][0]["text"]
    assert liveness.others == []
    assert _restarts(server) == _metric(server) == before + 1
    assert has_exited(core)


@pytest.mark.faults
def test_saturation_is_no_stall(restarting: ServerProcess) -> None:
    """Many times the seconds of the watchdog pass with a full engine and a long queue, and all is well."""
    server, before = restarting, _restarts(restarting)
    streams = [open_stream(server.port, CHAT, STORY | {"max_tokens": 1900}) for _ in range(12)]
    wait_until(lambda: _under_way(server) == 12, 30)
    began = time.monotonic()
    statuses = set()
    while time.monotonic() - began < 5 * STALL_SECONDS:
        statuses.add(server.get("/readyz")[0])
        time.sleep(0.2)
    still_under_way = _under_way(server)
    for stream in streams:
        stream.close()

    assert statuses == {200}
    assert still_under_way > 2
    assert _restarts(server) == before


def _under_way(server: ServerProcess) -> int:
    _, body = server.get("/readyz")
    (model,) = body["models"]
    under_way: int = model["running"] + model["queued"]
    return under_way


def test_an_engine_that_stalls_has_failed_within_twice_its_seconds(serve: Callable[..., ServerProcess]) -> None:
    """Stopped without work it is nobody's loss; with the first request it is found, killed, and liveness says why."""
    server = serve(f"models.smollm2.engine.stall_seconds={STALL_SECONDS}").wait_until_ready()
    core = server.engine_core()
    core.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * STALL_SECONDS)
    idle, _ = server.get("/livez")
    began = time.monotonic()
    status, error = server.post("/v1/completions", QUESTION)
    seconds = time.monotonic() - began
    wait_until(lambda: server.get("/livez")[0] == 503, 10)
    _, body = server.get("/livez")

    assert idle == 200
    assert STALL_SECONDS - 1 < seconds < 2 * STALL_SECONDS
    assert (status, error["error"]["type"]) == (503, "service_unavailable_error")
    assert body["models"][0]["state"] == "failed"
    assert "the engine stalled: 1 request" in body["models"][0]["reason"]
    wait_until(lambda: has_exited(core), 10)
    assert server.stop() == 0


@pytest.mark.faults
def test_an_engine_that_cannot_start_again_is_given_up(
    serve: Callable[..., ServerProcess], smollm2: Path, tmp_path: Path
) -> None:
    """Its bytes are gone after the first start: each new one fails, and in the end liveness says so."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in smollm2.iterdir():
        (folder / file.name).hardlink_to(file.resolve())
    storage = json.dumps({"uri": str(folder)})
    server = serve(f"models.smollm2.storage={storage}", "models.smollm2.on_failure=restart").wait_until_ready()
    for file in folder.iterdir():
        file.unlink()
    server.engine_core().kill()
    wait_until(lambda: server.get("/livez")[0] == 503, 120, server.log_tail)
    _, body = server.get("/livez")

    assert "not restarted after 5 deaths" in body["models"][0]["reason"]
    assert body["models"][0]["restarts"] == 4
    assert server.stop() == 0


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_restarts_leave_nothing_behind(chat_file: Path) -> None:
    """After ten of them there are as many processes, threads and open files as after two.

    The memory that vLLM keeps of each engine is bounded only, in MiB: it is what the last restarts took on average.
    """
    program = [sys.executable, str(Path(__file__).parent / "dying.py"), str(chat_file), "10"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment(), timeout=880)
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"processes"')]

    assert len(seen) == 11, done.stderr[-2000:]
    assert [{**each, "MiB": 0} for each in seen[3:]] == [{**seen[2], "MiB": 0}] * 8
    assert (seen[-1]["MiB"] - seen[2]["MiB"]) / 8 < 100
