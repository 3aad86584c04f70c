"""The client of one upstream: addresses, headers, timeouts, and closed connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import pytest
from server_process import free_port
from upstreams import FOR_EVER, Answer, Upstream, stream, zipped

from appliance.config.upstreams import TimeoutsConfig, UpstreamConfig
from appliance.core.errors import GatewayError, GatewayTimeoutError, UnreachableError
from appliance.core.http import join_url
from appliance.proxy.client import UpstreamClient
from appliance.proxy.headers import forward_request_headers, forward_response_headers

BODY = b'{"input": "a"}'

# What nginx, Apache, lighttpd, Perlbal, caches and browsers do as an answer tells them.
OBEYED = (
    "x-accel-redirect",
    "x-accel-limit-rate",
    "x-sendfile",
    "x-lighttpd-send-file",
    "x-reproxy-url",
    "surrogate-control",
    "refresh",
    "clear-site-data",
    "link",
    "alt-svc",
    "strict-transport-security",
    "content-security-policy",
    "www-authenticate",
    "server",
)


@pytest.fixture
async def client(upstream: Upstream) -> AsyncGenerator[UpstreamClient]:
    """A client with a key and short timeouts."""
    timeouts = TimeoutsConfig(connect_seconds=2, first_byte_seconds=2, idle_seconds=1)
    client = UpstreamClient(
        UpstreamConfig(url=upstream.url, api_key="sk-secret", headers={"X-Team": "a"}, timeouts=timeouts)
    )
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("http://llm:8000", "/v1/embeddings", "http://llm:8000/v1/embeddings"),
        ("http://llm:8000/v1/", "/v1/embeddings", "http://llm:8000/v1/embeddings"),
        ("http://llm:8000/v1", "/tokenize", "http://llm:8000/tokenize"),
        ("http://llm:8000", "/v2/rerank", "http://llm:8000/v2/rerank"),
        ("https://api.example/openai/v1", "/v1/responses", "https://api.example/openai/v1/responses"),
        ("https://api.example/v1beta/openai/", "/v1/embeddings", "https://api.example/v1beta/openai/embeddings"),
        ("https://api.example/v4?a=1", "/v1/embeddings", "https://api.example/v4/embeddings?a=1&b=%20"),
    ],
)
def test_a_route_is_joined_to_a_base_with_or_without_version(base: str, path: str, url: str) -> None:
    """Base URLs are copied from manuals, and keep their path and query."""
    query = "b=%20" if "?" in base else ""

    assert str(join_url(base, path, query)) == url


async def test_the_configured_key_and_headers_are_sent(client: UpstreamClient, upstream: Upstream) -> None:
    """The body is sent unchanged."""
    answer = await client.send("/v1/embeddings", BODY, {"content-type": "application/json"})

    assert (answer.status, (await answer.read())[:1]) == (200, b"{")
    (asked,) = upstream.asked
    assert (asked.path, asked.body) == ("/v1/embeddings", BODY)
    assert asked.header("authorization") == "Bearer sk-secret"
    assert asked.header("x-team") == "a"
    assert "sk-secret" not in repr(client.config)


def test_only_safe_headers_of_the_client_are_forwarded() -> None:
    """Traces are; keys, cookies and headers of the connection are not, even if the config lists those."""
    sent = {
        "authorization": "Bearer theirs",
        "cookie": "a=b",
        "connection": "close, x-mine",
        "x-mine": "1",
        "host": "here",
        "content-length": "3",
        "te": "trailers",
        "traceparent": "00-1-2-01",
        "x-request-id": "r",
        "x-tenant": "t",
    }

    assert forward_request_headers(sent) == {"traceparent": "00-1-2-01", "x-request-id": "r"}
    asked_for = forward_request_headers(
        sent, forward=("X-Tenant", "Authorization", "te", "host", "x-mine"), drop=("TraceParent",)
    )
    assert asked_for == {"x-tenant": "t", "authorization": "Bearer theirs", "x-request-id": "r"}


def test_only_safe_headers_of_the_upstream_are_returned() -> None:
    """
    Limits and waits do; what speaks to servers and browsers, and what the section drops, does not; its request id has
    another name.
    """
    answered = {
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "transfer-encoding": "chunked",
        "set-cookie": "a=b",
        "content-encoding": "gzip",
        "retry-after": "3",
        "x-ratelimit-remaining": "9",
        "x-request-id": "theirs",
        "x-secret": "s",
        "access-control-allow-origin": "*",
        "location": "http://inside",
        "anthropic-ratelimit-tokens-remaining": "5",
        "x-custom": "c",
        "openai-version": "2020-10-01",
        **dict.fromkeys(OBEYED, "/etc/passwd"),
    }

    assert forward_response_headers(
        answered, expose=("X-Custom", "X-Secret", "Content-Length"), drop=("X-Secret",)
    ) == {
        "retry-after": "3",
        "x-ratelimit-remaining": "9",
        "anthropic-ratelimit-tokens-remaining": "5",
        "openai-version": "2020-10-01",
        "x-custom": "c",
        "x-upstream-request-id": "theirs",
    }


def test_headers_that_are_not_ascii_are_not_returned() -> None:
    """Clients decode them differently."""
    assert forward_response_headers(
        {"retry-after": "3\udce9", "openai-organization": "Größe", "x-ratelimit-limit": "1"}
    ) == {"x-ratelimit-limit": "1"}


async def test_an_unreachable_upstream_is_a_gateway_error() -> None:
    """Its message for clients has no address."""
    port = free_port()
    client = UpstreamClient(UpstreamConfig(url=f"http://127.0.0.1:{port}"))

    with pytest.raises(GatewayError, match="cannot be reached") as raised:
        await client.send("/v1/embeddings", BODY)
    assert (raised.value.status, str(port) in str(raised.value)) == (502, False)
    await client.close()


async def test_a_request_that_could_not_be_sent_is_one_that_was_not_begun(
    client: UpstreamClient, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ends closes its idle connections, perhaps just when a request takes one: another gets it."""
    await (await client.send("/v1/embeddings", BODY)).read()
    assert client._session is not None
    connector: Any = client._session.connector
    take = connector._get

    async def take_and_close(*arguments: Any) -> Any:
        connection = await take(*arguments)
        # As it is from a failed write on until the event loop tells the protocol.
        monkeypatch.setattr(connection.protocol.transport, "is_closing", lambda: True)
        return connection

    monkeypatch.setattr(connector, "_get", take_and_close)
    with pytest.raises(UnreachableError, match="cannot be reached"):
        await client.send("/v1/embeddings", BODY)
    assert len(upstream.calls) == 1


async def test_no_first_byte_in_time_is_a_timeout(client: UpstreamClient, upstream: Upstream) -> None:
    """504, and the upstream sees the connection close."""
    upstream.on("/v1/embeddings", Answer(wait=FOR_EVER))

    with pytest.raises(GatewayTimeoutError):
        await client.send("/v1/embeddings", BODY)
    await _until_left(upstream)


async def test_a_first_line_without_an_end_is_a_timeout(client: UpstreamClient, upstream: Upstream) -> None:
    """504 however often a byte of it comes; one line in time is enough."""
    drops: list[bytes | float] = [b"x", 0.05] * 1000
    upstream.on("/v1/embeddings", stream(*drops))
    upstream.on("/v1/rerank", stream(b"da", b"ta: 1\n", FOR_EVER))
    whole = await client.send("/v1/rerank", BODY)

    assert await whole.start()
    assert await whole.read_piece() == b"data: 1\n"
    endless = await client.send("/v1/embeddings", BODY)
    with pytest.raises(GatewayTimeoutError, match="no complete line"):
        await endless.start(patience=1)
    for each in (whole, endless):
        each.close()
    await _until_left(upstream)


async def test_silence_in_the_middle_is_a_timeout(client: UpstreamClient, upstream: Upstream) -> None:
    """What came before was read; silence shorter than the timeout is not an error."""
    upstream.on("/v1/embeddings", stream(b"data: 1\n\n", FOR_EVER))
    answer = await client.send("/v1/embeddings", BODY)

    assert await answer.read_piece() == b"data: 1\n\n"
    assert await answer.read_piece(patience=0.1) is None
    with pytest.raises(GatewayTimeoutError):
        await answer.read_piece()
    answer.close()
    await _until_left(upstream)


async def test_the_whole_response_has_a_time_limit(upstream: Upstream) -> None:
    """Also for an upstream that is never silent for long."""
    drip: list[bytes | float] = [b"data: 1\n\n", 0.1]
    upstream.on("/v1/embeddings", stream(*drip * 1000))
    client = UpstreamClient(
        UpstreamConfig(url=upstream.url, timeouts=TimeoutsConfig(idle_seconds=5, total_seconds=0.7))
    )
    answer = await client.send("/v1/embeddings", BODY)

    with pytest.raises(GatewayTimeoutError):
        await answer.read()
    await _until_left(upstream)
    await client.close()


async def test_connecting_has_a_time_limit() -> None:
    """A shorter one than that of a response, and with its own message."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            # The queue is full with these, and the next one is not heard.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        url = "http://{}:{}".format(*server.getsockname())
        client = UpstreamClient(UpstreamConfig(url=url, timeouts=TimeoutsConfig(connect_seconds=0.3)))

        with pytest.raises(GatewayError, match="cannot be reached in time") as raised:
            await client.send("/v1/embeddings", BODY)
        await client.close()

    assert raised.value.status == 502


async def test_the_time_of_a_slow_reader_is_not_idle_time(client: UpstreamClient, upstream: Upstream) -> None:
    """Idle time is measured while somebody waits."""
    upstream.on("/v1/embeddings", stream(b"data: 1\n\n", 1.6, b"data: 2\n\n"))
    answer = await client.send("/v1/embeddings", BODY)
    first = await answer.read_piece()
    await asyncio.sleep(1.2)

    assert (first, await answer.read_piece(), await answer.read_piece()) == (b"data: 1\n\n", b"data: 2\n\n", b"")


async def test_an_unrequested_content_coding_is_decoded(client: UpstreamClient, upstream: Upstream) -> None:
    """No coding is requested, and gzip is decoded anyway."""
    upstream.on("/v1/embeddings", zipped(Answer(body=b'{"a": 1}')))

    answer = await client.send("/v1/embeddings", BODY)

    assert await answer.read() == b'{"a": 1}'
    assert upstream.asked[0].header("accept-encoding") == "identity"


async def test_a_redirect_is_not_followed(client: UpstreamClient, upstream: Upstream) -> None:
    """The key is sent to no other address than the configured one, and the error says what to do."""
    upstream.on("/v1/embeddings", Answer(status=307, headers={"Location": "/v1/chat/completions"}))

    with pytest.raises(GatewayError, match="set its url"):
        await client.send("/v1/embeddings", BODY)

    assert len(upstream.asked) == 1


async def test_a_long_body_is_sent_completely(client: UpstreamClient, upstream: Upstream) -> None:
    """With its length, and in order."""
    body = bytes(range(256)) * 20_000

    await (await client.send("/v1/audio/transcriptions", body)).read()

    assert upstream.asked[0].body == body
    assert upstream.asked[0].header("content-length") == str(len(body))


async def test_the_default_content_type_is_json(client: UpstreamClient, upstream: Upstream) -> None:
    """Requests from within the server have no headers."""
    for headers in ({}, {"content-type": "multipart/form-data; boundary=b"}):
        await (await client.send("/v1/embeddings", BODY, headers)).read()
    await (await client.send("/v1/models", None)).read()

    kinds = [each.header("content-type") for each in upstream.asked]
    assert kinds == ["application/json", "multipart/form-data; boundary=b", None]


async def test_connections_are_reused(client: UpstreamClient, upstream: Upstream) -> None:
    """Two requests, one connection."""
    for _ in range(2):
        await (await client.send("/v1/embeddings", BODY)).read()

    assert upstream.asked[0].peer == upstream.asked[1].peer


async def _until_left(upstream: Upstream) -> None:
    async with asyncio.timeout(10):
        while not upstream.asked[-1].has_left:
            await asyncio.sleep(0.02)


async def test_a_fast_stream_does_not_block_the_event_loop(client: UpstreamClient, upstream: Upstream) -> None:
    """It is read in pieces, and other tasks run between two of them."""
    whole = b"data: {}\n\n" * 200_000
    upstream.on("/v1/chat/completions", stream(whole))
    answer = await client.send("/v1/chat/completions", BODY)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    waiting = asyncio.create_task(others())
    # Meanwhile more has come than one piece.
    await asyncio.sleep(0.05)
    pieces = [(piece, turns) async for piece in answer.read_pieces()]
    waiting.cancel()

    assert b"".join(piece for piece, _ in pieces) == whole
    assert max(len(piece) for piece, _ in pieces) <= 64 * 1024
    assert len({turn for _, turn in pieces}) > len(pieces) / 2
