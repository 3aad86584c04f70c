"""Endless responses and unrequested content codings: memory is limited, and the event loop is not blocked."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from itertools import repeat

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from proxy.proxy_model import ask, chat, proxied, read
from proxy.raw_server import raw_server
from upstreams import SSE, Answer, Piece, Upstream

from appliance.config.upstreams import UpstreamConfig
from appliance.core.errors import GatewayError
from appliance.proxy.client import UpstreamClient
from appliance.proxy.response import content_decoder

CHAT_PATH = "/v1/chat/completions"
LIMIT = 1024 * 1024


def _bounded(upstream: Upstream) -> list[dict[str, object]]:
    return [{"url": upstream.url, "max_response_bytes": LIMIT}]


async def test_an_endless_response_has_a_limit(upstream: Upstream) -> None:
    """502, and the upstream sees the connection close."""
    upstream.on(CHAT_PATH, Answer(body=repeat(b" " * 65536), media_type="application/json"))
    async with proxied(upstream, upstreams=_bounded(upstream)) as model:
        with pytest.raises(GatewayError, match="too long") as raised:
            await ask(model)

    assert "max_response_bytes" in raised.value.detail


async def test_an_endless_line_of_a_stream_has_a_limit(upstream: Upstream) -> None:
    """Lines are held until they end, up to the limit."""
    upstream.on(CHAT_PATH, Answer(body=(b"data: {}\n\n", *repeat(b"x" * 65536, 1000)), media_type=SSE))
    chunks: list[bytes] = []
    async with proxied(upstream, upstreams=_bounded(upstream)) as model:
        reply = await model.handle(chat(stream=True))
        with pytest.raises(GatewayError, match="too long"):
            await read(reply, chunks)

    assert b"".join(chunks) == b"data: {}\n\n"


async def test_a_long_line_within_the_limit_is_relayed(upstream: Upstream) -> None:
    """An image in one event, with the client's name of the model."""
    line = b'data: {"model": "theirs", "image": "' + b"x" * (LIMIT // 2) + b'"}\n\n'
    pieces: list[Piece] = [line[:100], line[100:400_000], line[400_000:]]
    upstream.on(CHAT_PATH, Answer(body=pieces, media_type=SSE))
    async with proxied(upstream, upstreams=_bounded(upstream)) as model:
        whole = await read(await model.handle(chat(stream=True)))

    assert whole == line.replace(b"theirs", b"mine")


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_decompressed_bytes_have_a_limit(upstream: Upstream, coding: str) -> None:
    """The limit counts decoded bytes, and decoding is incremental."""
    body = {"gzip": lambda: gzip.compress(bytes(1 << 28)), "zstd": lambda: zstandard.compress(bytes(1 << 28))}[coding]()
    upstream.on(CHAT_PATH, Answer(body=body, headers={"Content-Encoding": coding}))
    async with proxied(upstream, upstreams=_bounded(upstream)) as model:
        with pytest.raises(GatewayError, match="too long"):
            await ask(model)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate", "zstd"])
async def test_unrequested_content_codings_are_decoded(upstream: Upstream, coding: str) -> None:
    """In whole responses and in streams, split anywhere."""
    raw = zlib.compressobj(wbits=-15)
    text = b'data: {"model": "theirs", "text": "' + b"word " * 1000 + b'"}\n\n'
    coded = {
        "gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "raw deflate": raw.compress(text) + raw.flush(),
        "zstd": zstandard.compress(text),
    }[coding]
    pieces = [bytes([each]) for each in coded]
    upstream.on(CHAT_PATH, Answer(body=pieces, media_type=SSE, headers={"Content-Encoding": coding.split()[-1]}))
    async with proxied(upstream) as model:
        reply = await model.handle(chat(stream=True))
        assert await read(reply) == text.replace(b"theirs", b"mine")
    assert "content-encoding" not in reply.headers


async def test_an_unsupported_content_coding_is_named(upstream: Upstream) -> None:
    """502 with its name, and the supported ones."""
    upstream.on(CHAT_PATH, Answer(body=b"x", headers={"Content-Encoding": "br"}))
    async with proxied(upstream) as model:
        with pytest.raises(GatewayError, match=r"'br'.*gzip, deflate, zstd"):
            await ask(model)


@pytest.mark.parametrize("body", [b"{}", gzip.compress(b"{}", mtime=0)[:-4]])
async def test_a_body_that_is_not_of_its_coding_is_an_error(upstream: Upstream, body: bytes) -> None:
    """Also if only its end is missing."""
    upstream.on(CHAT_PATH, Answer(body=body, headers={"Content-Encoding": "gzip"}))
    async with proxied(upstream) as model:
        with pytest.raises(GatewayError):
            await ask(model)


@given(st.binary(max_size=4000), st.sampled_from(["gzip", "zstd"]), st.integers(1, 500))
def test_encoded_bytes_are_decoded(text: bytes, coding: str, step: int) -> None:
    """Several members or frames, in pieces of any length."""
    compress: Callable[[bytes], bytes] = gzip.compress if coding == "gzip" else zstandard.compress
    coded = compress(text) + compress(text[::-1])
    decoding = content_decoder(coding)
    assert decoding is not None

    pieces = [piece for at in range(0, len(coded), step) for piece in decoding.feed(coded[at : at + step])]

    assert b"".join(pieces) == text + text[::-1]
    assert decoding.is_at_end


async def test_interim_responses_have_a_limit() -> None:
    """One or two are HTTP; an endless series is an error long before the timeout."""
    async with raw_server(repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)) as port:
        client = UpstreamClient(UpstreamConfig(url=f"http://127.0.0.1:{port}"))
        with pytest.raises(GatewayError, match="not HTTP") as raised:
            await client.send("/v1/embeddings", b"{}")
        await client.close()

    assert "never begins" in raised.value.detail


async def test_a_few_interim_responses_are_skipped() -> None:
    """The final one after them is the response."""
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    async with raw_server(
        [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", final]
    ) as port:
        client = UpstreamClient(UpstreamConfig(url=f"http://127.0.0.1:{port}"))
        answer = await client.send("/v1/embeddings", b"{}")
        assert (answer.status, await answer.read()) == (200, b"{}")
        await client.close()


@pytest.mark.parametrize("status", [101, 600, 999])
async def test_a_status_that_is_not_final_is_an_error(status: int) -> None:
    """502 with its number."""
    async with raw_server([f"HTTP/1.1 {status} Odd\r\nContent-Length: 0\r\n\r\n".encode()]) as port:
        client = UpstreamClient(UpstreamConfig(url=f"http://127.0.0.1:{port}"))
        with pytest.raises(GatewayError, match=f"status {status}"):
            await client.send("/v1/embeddings", b"{}")
        await client.close()


async def test_a_health_check_reads_a_limited_body(upstream: Upstream) -> None:
    """Its status is enough."""
    upstream.on("/v1/models", Answer(body=repeat(b" " * 65536)))

    async with proxied(upstream, health={"interval_seconds": 3600, "timeout_seconds": 60}) as model:
        await model.check()
