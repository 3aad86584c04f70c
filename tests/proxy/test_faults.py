"""Broken connections between the proxy and its upstreams, and what clients get."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from faultproxy import Fault, FaultProxy
from server_process import ServerProcess, open_stream, wait_until
from upstreams import FOR_EVER, Answer, Upstream, event, stream

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"
PATIENCE = "{connect_seconds: 2, first_byte_seconds: 1, idle_seconds: 1}"

# A model behind one shaky upstream, one with a sound upstream beside it, and one that is patient.
CONFIG = """
models:
- name: single
  class: proxy
  upstreams: [{{url: {shaky}, timeouts: {patience}}}]
  breaker: {{failures: 1000000}}
  health: {{path: /health, interval_seconds: 3600}}
- name: double
  class: proxy
  balance: round_robin
  upstreams:
  - {{url: {shaky}, timeouts: {patience}}}
  - {{url: {sound}, timeouts: {patience}}}
  breaker: {{failures: 1000000, outlier_margin: 1}}
  retry: {{budget_share: 1, generations: true}}
  health: {{path: /health, interval_seconds: 3600}}
- name: once
  class: proxy
  upstreams:
  - {{url: {shaky}, timeouts: {patience}}}
  - {{url: {sound}, timeouts: {patience}, priority: 1}}
  breaker: {{failures: 1000000, outlier_margin: 1}}
  retry: {{budget_share: 1}}
  health: {{path: /health, interval_seconds: 3600}}
- name: patient
  class: proxy
  upstreams: [{{url: {sound}}}]
"""


@pytest.fixture(scope="module")
def _servers() -> Iterator[tuple[Upstream, FaultProxy, Upstream]]:
    with Upstream() as shaky, FaultProxy(shaky.port) as fault_proxy, Upstream() as sound:
        yield shaky, fault_proxy, sound


@pytest.fixture(scope="module")
def proxy(
    _servers: tuple[Upstream, FaultProxy, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """The proxy under test."""
    _, fault_proxy, sound = _servers
    folder: Path = tmp_path_factory.mktemp("faults")
    file = folder / "proxy.yaml"
    file.write_text(CONFIG.format(shaky=fault_proxy.url, sound=sound.url, patience=PATIENCE))
    served = ServerProcess(file, folder / "log").wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture
def shaky(_servers: tuple[Upstream, FaultProxy, Upstream]) -> Iterator[Upstream]:
    """The upstream behind the fault proxy."""
    upstream, fault_proxy, sound = _servers
    upstream.reset()
    sound.reset()
    yield upstream
    fault_proxy.set(None)


@pytest.fixture
def fault_proxy(_servers: tuple[Upstream, FaultProxy, Upstream], shaky: Upstream) -> FaultProxy:
    """The fault proxy in front of the shaky upstream, repaired after the test."""
    return _servers[1]


@pytest.fixture
def sound(_servers: tuple[Upstream, FaultProxy, Upstream], shaky: Upstream) -> Upstream:
    """The upstream without faults."""
    return _servers[2]


def _ask(proxy: ServerProcess, model: str, *, is_stream: bool = False) -> httpx.Response:
    body = {"model": model, "stream": is_stream, "messages": [{"role": "user", "content": "one two three"}]}
    return httpx.post(f"{proxy.url}{CHAT}", json=body, timeout=30)


def _events(response: httpx.Response) -> list[Any]:
    """Return the data of each event, decoded if it is JSON."""
    found = re.findall(r"^data: (.*)$", response.text, re.MULTILINE)
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def _text(response: httpx.Response, *, is_stream: bool) -> str:
    if not is_stream:
        return str(response.json()["choices"][0]["message"]["content"])
    chunks = [each for each in _events(response) if each != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


BEFORE = [
    (Fault("refuse"), 502),
    (Fault("hang_up"), 502),
    (Fault("reset"), 502),
    (Fault("fin"), 502),
    (Fault("stall"), 504),
]


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("fault", "status"), BEFORE, ids=[fault.kind for fault, _ in BEFORE])
def test_a_missing_response_is_an_openai_error(
    proxy: ServerProcess, fault_proxy: FaultProxy, fault: Fault, status: int, is_stream: bool
) -> None:
    """Before the first byte: 502 without a response, 504 if it is late; the next request succeeds."""
    fault_proxy.set(fault)
    response = _ask(proxy, "single", is_stream=is_stream)
    error = response.json()["error"]

    assert response.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], "upstream" in error["message"]) == ("server_error", True)
    assert str(fault_proxy.port) not in response.text

    fault_proxy.set(None)
    assert _ask(proxy, "single", is_stream=is_stream).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["refuse", "hang_up", "reset", "fin"])
def test_another_upstream_replaces_a_failing_one(
    proxy: ServerProcess, fault_proxy: FaultProxy, sound: Upstream, kind: Any, is_stream: bool
) -> None:
    """Every second request meets the fault, and the client notices none."""
    fault_proxy.set(Fault(kind))
    responses = [_ask(proxy, "double", is_stream=is_stream) for _ in range(4)]

    assert [response.status_code for response in responses] == [200] * 4
    assert {_text(response, is_stream=is_stream) for response in responses} == {"You said: one two three"}
    assert len(sound.calls) == 4
    assert kind == "refuse" or fault_proxy.hits >= 2


@pytest.mark.parametrize(
    ("kind", "generation", "embedding"), [("reset", 502, 200), ("fin", 502, 200), ("stall", 504, 504)]
)
def test_what_an_upstream_may_have_begun_is_not_sent_again(
    proxy: ServerProcess, fault_proxy: FaultProxy, sound: Upstream, kind: Any, generation: int, embedding: int
) -> None:
    """A generation is not, whole or streamed, to no reserve either; embeddings are, unless the time is over."""
    fault_proxy.set(Fault(kind))
    whole, streamed = _ask(proxy, "once"), _ask(proxy, "once", is_stream=True)
    generated = len(sound.calls)
    body = {"model": "once", "input": "hi"}
    vector = httpx.post(f"{proxy.url}/v1/embeddings", json=body, timeout=30)

    assert (whole.status_code, streamed.status_code, vector.status_code) == (generation, generation, embedding)
    assert (generated, len(sound.calls)) == (0, 1 if embedding == 200 else 0)


@pytest.mark.parametrize("model", ["single", "double"])
@pytest.mark.parametrize("kind", ["reset", "fin", "stall"])
def test_a_stream_that_breaks_ends_with_an_error_event(
    proxy: ServerProcess, fault_proxy: FaultProxy, shaky: Upstream, sound: Upstream, model: str, kind: Any
) -> None:
    """After the first byte there is no retry: the bytes so far, then an error, and no `[DONE]`."""
    padded = [event({"choices": [{"index": 0, "delta": {"content": str(n)}}], "x": "y" * 100}) for n in range(100)]
    # The first event is on its way before the rest comes, and breaks.
    shaky.on(CHAT, stream(padded[0], 0.3, *padded[1:]))
    fault_proxy.set(Fault(kind, after=2000))
    broken = [
        response for response in (_ask(proxy, model, is_stream=True) for _ in range(2)) if "error" in response.text
    ]
    events = _events(broken[0])
    said = [each["choices"][0]["delta"]["content"] for each in events[:-1]]

    assert len(broken) == (2 if model == "single" else 1)
    assert len(sound.calls) == (0 if model == "single" else 1)
    assert broken[0].status_code == 200
    assert len(said) > 3
    assert said == [str(number) for number in range(len(said))]
    assert set(events[-1]["error"]) == {"message", "type", "param", "code"}
    assert broken[0].text.endswith("\n\n")


@pytest.mark.parametrize(("kind", "status"), [("reset", 502), ("fin", 502), ("stall", 504)])
def test_a_truncated_response_is_an_error(
    proxy: ServerProcess, fault_proxy: FaultProxy, shaky: Upstream, kind: Any, status: int
) -> None:
    """Half a response is none."""
    shaky.on(CHAT, Answer(body=json.dumps({"choices": [], "x": "y" * 100_000}).encode()))
    fault_proxy.set(Fault(kind, after=50_000))
    response = _ask(proxy, "single")

    assert response.status_code == status
    assert response.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "fault", [Fault("slow", rate=4000), Fault("latency", seconds=0.3)], ids=lambda fault: fault.kind
)
def test_a_slow_upstream_is_not_an_error(
    proxy: ServerProcess, fault_proxy: FaultProxy, shaky: Upstream, fault: Fault, is_stream: bool
) -> None:
    """It is never silent for too long: everything arrives, with one request."""
    fault_proxy.set(fault)
    response = _ask(proxy, "single", is_stream=is_stream)

    assert response.status_code == 200
    assert _text(response, is_stream=is_stream) == "You said: one two three"
    assert len(shaky.calls) == 1


def _is_gone(connection: socket.socket, upstream: Upstream) -> None:
    wait_until(lambda: len(upstream.calls) == 1, 10)
    connection.close()
    wait_until(lambda: upstream.calls[0].has_left, 10)


@pytest.mark.parametrize(
    "answer",
    [Answer(wait=FOR_EVER), stream(FOR_EVER), stream(event({}), FOR_EVER)],
    ids=["before its head", "before its first byte", "in the middle"],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_cancels_the_upstream(
    proxy: ServerProcess, sound: Upstream, answer: Answer, is_stream: bool
) -> None:
    """At any time, and no request stays counted as running."""
    sound.on(CHAT, answer)
    body = {"model": "patient", "stream": is_stream, "messages": []}

    _is_gone(open_stream(proxy.port, CHAT, body), sound)

    wait_until(lambda: all(model["running"] == 0 for model in proxy.get("/readyz")[1]["models"]), 10)


def test_a_client_that_does_not_read_slows_the_upstream_down(proxy: ServerProcess, sound: Upstream) -> None:
    """What it does not read is not read from the upstream either: memory does not grow, and nothing is lost."""
    piece, count = event({"x": "y" * 65_000}), 2000
    sound.on(CHAT, stream(*[piece] * count))
    process = psutil.Process(proxy.process.pid)
    before = process.memory_info().rss
    with open_stream(proxy.port, CHAT, {"model": "patient", "stream": True, "messages": []}) as connection:
        wait_until(lambda: bool(sound.calls) and sound.calls[0].sent > 0, 10)
        sent = -1
        while sent != sound.calls[0].sent:
            sent = sound.calls[0].sent
            time.sleep(0.5)
        grown = process.memory_info().rss - before
        received = 0
        while data := connection.recv(1 << 20):
            received += len(data)

    assert sent < len(piece) * count / 4
    assert grown < 32 << 20
    assert received > len(piece) * count
    assert process.memory_info().rss - before < 32 << 20
