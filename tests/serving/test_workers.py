"""Two workers on one real engine: they answer alike, count together, and end together."""

from __future__ import annotations

import re
import signal
import socket
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from questions import CAPITAL_ANSWER, CHAT
from server_process import ServerProcess, has_exited, open_stream, wait_until

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
STORY = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, "stream": True, "temperature": 0}


@pytest.fixture
def start(serve: Callable[..., ServerProcess]) -> Callable[..., ServerProcess]:
    """Starts SmolLM2 with two workers."""
    size = "models.smollm2.engine.kv_cache_memory_bytes=500000000"
    return lambda *overrides: serve("server.workers=2", size, *overrides).wait_until_ready()


def _workers(server: ServerProcess) -> list[psutil.Process]:
    return [psutil.Process(worker["pid"]) for worker in server.get("/readyz")[1]["workers"]]


def _scrape(server: ServerProcess) -> dict[str, float]:
    """Each sample of vLLM's metrics by its line up to the value."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:")}


def _sum(scraped: dict[str, float], name: str) -> float:
    return sum(value for key, value in scraped.items() if re.match(rf"{name}[{{ ]", key))


def _each_a_stream(server: ServerProcess, open_until_the_end: ExitStack, tokens: int) -> list[socket.socket]:
    """A stream of so many tokens under way in each worker."""
    streams: dict[int, socket.socket] = {}
    while len(streams) < 2:
        stream = open_until_the_end.enter_context(open_stream(server.port, PATH, STORY | {"max_tokens": tokens}))
        port = stream.getsockname()[1]
        assert b"200 OK" in stream.recv(64)
        for number, worker in enumerate(_workers(server)):
            if any(each.raddr and each.raddr.port == port for each in worker.net_connections("tcp")):
                streams.setdefault(number, stream)
    return [streams[0], streams[1]]


def _rest(stream: socket.socket) -> bytes:
    received = b""
    stream.settimeout(60)
    while piece := stream.recv(65536):
        received += piece
    return received


def test_they_answer_alike_count_together_and_drain_together(start: Callable[..., ServerProcess]) -> None:
    """Requests spread, whoever answers says the same, a scrape has each of them once, and SIGTERM loses no stream."""
    server = start()
    before = _scrape(server)
    answers = [server.post(PATH, CHAT)[1] for _ in range(24)]
    done = _sum(before, "vllm:request_success_total") + len(answers)
    # What a worker says of itself, the others hear a second later.
    wait_until(lambda: _sum(_scrape(server), "vllm:request_success_total") >= done, 10)
    after = _scrape(server)
    served_by = Counter(each["worker"] for each in server.events() if each["event"] == "request.ended")
    processes = server.descendants()
    with ExitStack() as streams:
        under_way = _each_a_stream(server, streams, tokens=100)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/readyz")[0] != 200, 10)
        ends = [_rest(stream) for stream in under_way]

    def grown(name: str) -> float:
        return _sum(after, name) - _sum(before, name)

    assert {answer["choices"][0]["message"]["content"] for answer in answers} == {CAPITAL_ANSWER}
    assert set(served_by) == {0, 1}
    assert served_by.total() == 24
    assert grown("vllm:request_success_total") == 24
    assert grown("vllm:e2e_request_latency_seconds_count") == 24
    assert grown("vllm:prompt_tokens_total") == sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert grown("vllm:generation_tokens_total") == sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert [key for key in after if key.startswith("vllm:num_requests_running")] == [
        'vllm:num_requests_running{engine="0",model_name="smollm2"}'
    ]
    assert all(b'"finish_reason":"length"' in end and b"[DONE]" in end for end in ends)
    assert server.process.wait(20) == 0, server.log_tail()
    wait_until(lambda: all(has_exited(process) for process in processes), 10)


def test_the_death_of_one_ends_all_and_says_so(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """The stream of the other one ends whole, the exit code is not 0, no process and no file is left."""
    server = start()
    processes = server.descendants()
    folders = [Path(path).parent for path in _sockets(_workers(server)[1])]
    with ExitStack() as streams:
        kept, _ = _each_a_stream(server, streams, tokens=100)
        _workers(server)[1].kill()
        end = _rest(kept)

    assert b'"finish_reason":"length"' in end
    assert server.process.wait(20) == 1
    wait_until(lambda: all(has_exited(process) for process in processes), 10)
    (reason,) = [event["reason"] for event in server.events() if event["event"] == "server.failed"]
    assert "worker 1 ended with signal 9: the engine that the workers share" in reason
    assert folders
    assert not any(folder.exists() for folder in folders)


def _sockets(worker: psutil.Process) -> list[str]:
    """Where it and the engine speak."""
    paths = [str(each.laddr) for each in worker.net_connections("unix")]
    return [path for path in paths if path.endswith((".in", ".out"))]


@pytest.mark.long
def test_a_dead_engine_shows_in_every_worker(start: Callable[..., ServerProcess]) -> None:
    """Streams of both end with an error, and liveness is 503 with the reason, whoever is asked."""
    server = start()
    with ExitStack() as streams:
        under_way = _each_a_stream(server, streams, tokens=1900)
        server.engine_core().kill()
        wait_until(lambda: server.get("/livez")[0] == 503, 10)
        ends = [_rest(stream) for stream in under_way]
    wait_until(lambda: "exit code -9" in server.get("/livez")[1]["models"][0]["reason"], 10)
    states = [server.get("/livez") for _ in range(8)]

    assert all(b'"error"' in end for end in ends)
    assert {(status, body["models"][0]["state"]) for status, body in states} == {(503, "failed")}
    assert all("exit code -9" in body["models"][0]["reason"] for _, body in states)
    assert server.stop() == 0
