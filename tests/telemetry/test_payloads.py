"""The payload log, in a file and at a URL."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import open_stream, until
from upstreams import FOR_EVER, Answer, Upstream, event, stream
from watched import CHAT, QUESTION, Watched, write

pytestmark = pytest.mark.contract

EVENTS = "/events"
METADATA = {"name": "shop-talk", "namespace": "shop"}

Start = Callable[..., Watched]


@pytest.fixture
def start(tmp_path: Path, plain: Upstream) -> Any:
    """Starts an appliance with this section `logging.payloads`."""
    servers = []

    def start(**config: object) -> Watched:
        file = write(tmp_path, plain, {"logging": {"payloads": config}, "metadata": METADATA})
        servers.append(Watched(file, tmp_path / "server.log"))
        return servers[-1].until_ready(60)

    yield start
    for server in servers:
        assert server.end() == 0, server.tail()


def _posted(upstream: Upstream) -> list[dict[str, Any]]:
    return [each.json() for each in upstream.asked if each.path == EVENTS]


def test_both_bodies_are_posted_as_cloud_events(start: Start, plain: Upstream) -> None:
    """The types, the attributes and the shared id are those of KServe's logger; what a key says is nowhere."""
    plain.on(EVENTS, Answer(202))
    server = start(sink=f"{plain.origin}{EVENTS}", headers={"Authorization": "Bearer of-the-sink"})

    server.ask(CHAT, QUESTION, {"X-Request-Id": "mine", "Authorization": "Bearer geheim"})

    until(lambda: len(_posted(plain)) == 2, 10, server.tail)
    asked, answered = sorted(_posted(plain), key=lambda each: each["type"])
    assert [each["type"].rpartition(".")[2] for each in (asked, answered)] == ["request", "response"]
    assert asked["type"] == "org.kubeflow.serving.inference.request"
    assert asked["data"] == QUESTION
    assert answered["data"]["choices"][0]["message"]["content"] == "You said: hi there"
    for each in (asked, answered):
        assert (each["specversion"], each["id"], each["source"]) == ("1.0", "mine", "/shop/shop-talk")
        assert (each["model"], each["operation"], each["status"]) == ("talk", "chat_completion", 200)
        assert (each["inferenceservicename"], each["namespace"]) == ("shop-talk", "shop")
        assert each["datacontenttype"].startswith("application/json")
    (first, *_) = [each for each in plain.asked if each.path == EVENTS]
    assert first.header("content-type") == "application/cloudevents+json"
    assert first.header("authorization") == "Bearer of-the-sink"
    assert "geheim" not in json.dumps(_posted(plain)) + server.log.read_text()
    until(lambda: server.metric("appliance_payloads_total", {"result": "sent"}) == 2, 10, server.tail)


def test_a_file_gets_a_line_for_each_and_long_ones_are_cut(start: Start, plain: Upstream, tmp_path: Path) -> None:
    """A stream is logged as it was sent; listings and probes are no payloads."""
    file = tmp_path / "payloads.jsonl"
    server = start(sink=str(file), max_bytes=100)

    server.stream(CHAT, QUESTION | {"stream": True})
    server.get("/v1/models")
    server.stream("/v1/audio/speech", {"model": "talk", "input": "x", "voice": "a"})

    until(lambda: file.exists() and len(file.read_text().splitlines()) == 4, 10, server.tail)
    asked, answered, _, spoken = [json.loads(line) for line in file.read_text().splitlines()]
    assert asked["data"] == QUESTION | {"stream": True}
    assert answered["data"].startswith("data: {")
    assert len(answered["data"]) == 100
    assert answered["truncated"] is True
    assert base64.b64decode(spoken["data_base64"]) == b"RIFF\x00\xff\xfe"


def test_a_sink_that_hangs_holds_up_nobody(start: Start, plain: Upstream) -> None:
    """What it does not take is dropped and counted, and the server stops in time."""
    plain.on(EVENTS, Answer(wait=FOR_EVER))
    server = start(sink=f"{plain.origin}{EVENTS}", max_queued_bytes=1024, mode="request")

    for _ in range(40):
        assert server.post(CHAT, QUESTION)[0] == 200

    until(lambda: server.metric("appliance_payloads_total", {"result": "dropped"}) > 0, 10, server.tail)
    assert "payloads.lost" in {each["event"] for each in server.events()}


def test_a_sink_that_refuses_is_told_of(start: Start, plain: Upstream) -> None:
    """Once in a while, not for each event."""
    plain.on(EVENTS, Answer(503))
    server = start(sink=f"{plain.origin}{EVENTS}", mode="response")

    for _ in range(5):
        server.post(CHAT, QUESTION)

    until(lambda: server.metric("appliance_payloads_total", {"result": "failed"}) == 5, 10, server.tail)
    (told,) = [each for each in server.events() if each["event"] == "payloads.lost"]
    assert told["reason"] == "status 503"


def test_a_stream_is_not_held_up_to_be_logged(start: Start, plain: Upstream, tmp_path: Path) -> None:
    """Its first event is there while the rest is not; a client that leaves is logged with what it got."""
    plain.on(CHAT, stream(event({"choices": []}), FOR_EVER))
    server = start(sink=str(tmp_path / "payloads.jsonl"), mode="response")

    with open_stream(server.port, CHAT, QUESTION | {"stream": True}) as connection:
        received = b""
        while b"choices" not in received:
            received += connection.recv(4096)

    file = tmp_path / "payloads.jsonl"
    until(lambda: file.exists() and file.read_text().endswith("\n"), 10, server.tail)
    logged = json.loads(file.read_text())
    assert logged["status"] == 499
    assert "choices" in logged["data"]
