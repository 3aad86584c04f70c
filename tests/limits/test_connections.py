"""Clients that take their time, over real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_process import ServerProcess, wait_until
from upstreams import FOR_EVER, Answer, Upstream

pytestmark = pytest.mark.contract

CONFIG = """
models:
- name: m
  class: proxy
  upstreams: [{{url: {url}}}]
  health: {{interval_seconds: 3600}}
  limits: {{concurrent: 1, queued: 0}}
server:
  max_body_bytes: 100000
  timeouts: {{header_seconds: 1, body_seconds: 1, send_seconds: 1}}
"""

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """What answers."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A proxy that answers one request at a time and waits for a second at most."""
    folder: Path = tmp_path_factory.mktemp("limits")
    file = folder / "limits.yaml"
    file.write_text(CONFIG.format(url=upstream.url))
    served = ServerProcess(file, folder / "log").wait_until_ready(60)
    yield served
    assert served.stop() == 0, served.log_tail()


def read_all(connection: socket.socket) -> bytes:
    """All that the server says until it closes the connection."""
    connection.settimeout(60)
    return b"".join(iter(lambda: connection.recv(65536), b""))


def connect(server: ServerProcess, first_bytes: bytes) -> socket.socket:
    """A connection on which so much was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(first_bytes)
    return connection


def test_a_body_that_does_not_come_is_408(server: ServerProcess) -> None:
    """Its connection waits no longer than it may, and the reason is told."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
    with connect(server, head + b'{"model":') as connection:
        status, _, rest = read_all(connection).partition(b"\r\n")

    assert b" 408 " in status
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("first_bytes", [b"GET", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_head_that_does_not_come_ends_the_connection(server: ServerProcess, first_bytes: bytes) -> None:
    """Be it a word of it, or most."""
    with connect(server, first_bytes) as connection:
        assert b" 200 " not in read_all(connection)


def test_a_connection_that_rests_is_closed(server: ServerProcess) -> None:
    """The time to send a head is also what may pass between two requests."""
    with connect(server, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_is_too_large_is_413(server: ServerProcess) -> None:
    """In OpenAI's shape, and before anything is made of it."""
    status, body = server.ask("/v1/chat/completions", b"x" * 200_000)

    assert (status, body["error"]["message"]) == (413, "The body is larger than server.max_body_bytes allows.")


def test_openais_client_hears_a_rate_limit(server: ServerProcess, upstream: Upstream) -> None:
    """It has an error of its own for 429, waits as long as it is told, and asks again."""
    upstream.reset()
    upstream.on("*", Answer(wait=FOR_EVER))
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client,
        connect(server, _request()),
    ):
        wait_until(lambda: server.get("/readyz")[1]["models"][0]["running"] == 1, 60)
        began = time.monotonic()
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])

        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.code == "overloaded"
        assert time.monotonic() - began < 30
    # Who held the place has left.
    wait_until(lambda: server.get("/readyz")[1]["models"][0]["running"] == 0, 60)


def test_a_client_that_does_not_read_loses_its_place(server: ServerProcess, upstream: Upstream) -> None:
    """Once nothing more fits on its way, and it takes none of it; the upstream's work is ended as well."""
    upstream.reset()
    event = b"data: " + b"x" * 100_000 + b"\n\n"
    upstream.on("*", Answer(body=[event] * 1000, media_type="text/event-stream"))
    with connect(server, _request(stream=True)):
        wait_until(lambda: server.get("/readyz")[1]["models"][0]["running"] == 1, 60)
        wait_until(lambda: server.get("/readyz")[1]["models"][0]["running"] == 0, 60)
    wait_until(lambda: upstream.asked[-1].has_left, 60)

    assert [event["event"] for event in server.events()].count("client.stalled") == 1
    assert not upstream.asked[-1].is_answered


def _request(**others: bool) -> bytes:
    body = json.dumps({**BODY, **others}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
