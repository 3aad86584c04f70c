"""The payload log, in a file and at a URL."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from proxy_process import CHAT_PATH, CHAT_REQUEST, ProxyProcess, write_config
from server_process import open_stream, wait_until
from upstreams import FOR_EVER, Answer, Upstream, event, stream

pytestmark = pytest.mark.contract

EVENTS = "/events"
METADATA = {"name": "shop-talk", "namespace": "shop"}

Start = Callable[..., ProxyProcess]


@pytest.fixture
def start(tmp_path: Path, plain: Upstream) -> Any:
    """Starts an appliance with this section `logging.payloads`."""
    servers = []

    def start(**config: object) -> ProxyProcess:
        file = write_config(tmp_path, plain, {"logging": {"payloads": config}, "metadata": METADATA})
        servers.append(ProxyProcess(file, tmp_path / "server.log"))
        return servers[-1].wait_until_ready(60)

    yield start
    for server in servers:
        assert server.stop() == 0, server.log_tail()


def _posted(upstream: Upstream) -> list[dict[str, Any]]:
    return [each.json() for each in upstream.asked if each.path == EVENTS]


def test_both_bodies_are_posted_as_cloud_events(start: Start, plain: Upstream) -> None:
    """The types, the attributes and the shared id are those of KServe's logger; what a key says is nowhere."""
    plain.on(EVENTS, Answer(202))
    server = start(sink=f"{plain.origin}{EVENTS}", headers={"Authorization": "Bearer of-the-sink"})

    server.ask(CHAT_PATH, CHAT_REQUEST, {"X-Request-Id": "mine", "Authorization": "Bearer geheim"})

    wait_until(lambda: len(_posted(plain)) == 2, 10, server.log_tail)
    asked, answered = sorted(_posted(plain), key=lambda each: each["type"])
    assert [each["type"].rpartition(".")[2] for each in (asked, answered)] == ["request", "response"]
    assert asked["type"] == "org.kubeflow.serving.inference.request"
    assert asked["data"] == CHAT_REQUEST
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
    wait_until(lambda: server.metric("appliance_payloads_total", {"result": "sent"}) == 2, 10, server.log_tail)


def test_a_file_gets_a_line_for_each_and_long_ones_are_cut(start: Start, plain: Upstream, tmp_path: Path) -> None:
    """A stream is logged as it was sent; listings and probes are no payloads."""
    file = tmp_path / "payloads.jsonl"
    server = start(sink=str(file), max_bytes=100)

    server.stream(CHAT_PATH, CHAT_REQUEST | {"stream": True})
    server.get("/v1/models")
    server.stream("/v1/audio/speech", {"model": "talk", "input": "x", "voice": "a"})

    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) == 4, 10, server.log_tail)
    asked, answered, _, spoken = [json.loads(line) for line in file.read_text().splitlines()]
    assert asked["data"] == CHAT_REQUEST | {"stream": True}
    assert answered["data"].startswith("data: {")
    assert len(answered["data"]) == 100
    assert answered["truncated"] is True
    assert base64.b64decode(spoken["data_base64"]) == b"RIFF\x00\xff\xfe"


def test_a_sink_that_hangs_holds_up_nobody(start: Start, plain: Upstream) -> None:
    """What it does not take is dropped and counted, and the server stops in time."""
    plain.on(EVENTS, Answer(wait=FOR_EVER))
    server = start(sink=f"{plain.origin}{EVENTS}", max_queued_bytes=1024, mode="request")

    for _ in range(40):
        assert server.post(CHAT_PATH, CHAT_REQUEST)[0] == 200

    wait_until(lambda: server.metric("appliance_payloads_total", {"result": "dropped"}) > 0, 10, server.log_tail)
    assert "payloads.lost" in {each["event"] for each in server.events()}


def test_a_sink_that_refuses_is_told_of(start: Start, plain: Upstream) -> None:
    """Once in a while, not for each event."""
    plain.on(EVENTS, Answer(503))
    server = start(sink=f"{plain.origin}{EVENTS}", mode="response")

    for _ in range(5):
        server.post(CHAT_PATH, CHAT_REQUEST)

    wait_until(lambda: server.metric("appliance_payloads_total", {"result": "failed"}) == 5, 10, server.log_tail)
    (told,) = [each for each in server.events() if each["event"] == "payloads.lost"]
    assert told["reason"] == "status 503"


def test_a_stream_is_not_held_up_to_be_logged(start: Start, plain: Upstream, tmp_path: Path) -> None:
    """Its first event is there while the rest is not; a client that leaves is logged with what it got."""
    plain.on(CHAT_PATH, stream(event({"choices": []}), FOR_EVER))
    server = start(sink=str(tmp_path / "payloads.jsonl"), mode="response")

    with open_stream(server.port, CHAT_PATH, CHAT_REQUEST | {"stream": True}) as connection:
        received = b""
        while b"choices" not in received:
            received += connection.recv(4096)

    file = tmp_path / "payloads.jsonl"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), 10, server.log_tail)
    logged = json.loads(file.read_text())
    assert logged["status"] == 499
    assert "choices" in logged["data"]
