"""Connections to an upstream: proxies of the environment, certificates, and error messages."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from proxy.raw_server import OK, http_proxy, raw_server
from server_process import free_port

from appliance.config.upstreams import TimeoutsConfig, UpstreamConfig, UpstreamTlsConfig
from appliance.core.errors import GatewayError, UnreachableError
from appliance.proxy.client import UpstreamClient

# A name that DNS never has (RFC 6761, section 6.4).
NOWHERE = "upstream.invalid"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the proxies of this machine's environment."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of its certificate."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return file


@asynccontextmanager
async def _client(url: str, tls: UpstreamTlsConfig | None = None) -> AsyncGenerator[UpstreamClient]:
    client = UpstreamClient(
        UpstreamConfig(url=url, tls=tls, timeouts=TimeoutsConfig(connect_seconds=60, first_byte_seconds=60))
    )
    yield client
    await client.close()


def _server_context(authority: trustme.CA, *, asks_client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if asks_client:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_a_private_certificate_authority_is_configured(authority: trustme.CA, ca: Path) -> None:
    """Without it the certificate is not trusted, which operators see and clients do not."""
    async with raw_server([OK], _server_context(authority)) as port:
        url = f"https://127.0.0.1:{port}"
        async with _client(url, UpstreamTlsConfig(ca=ca)) as client:
            assert (await client.send("/v1/embeddings", b"{}")).status == 200
        async with _client(url) as client:
            with pytest.raises(UnreachableError) as raised:
                await client.send("/v1/embeddings", b"{}")

    assert str(raised.value) == "The upstream cannot be reached."
    assert "certificate" in raised.value.detail
    assert "tls.ca" in raised.value.detail
    assert "_ssl" not in raised.value.detail


async def test_a_certificate_for_other_names_has_its_own_message(authority: trustme.CA, ca: Path) -> None:
    """Its authority is trusted, so tls.ca is no remedy."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(context)
    async with (
        raw_server([OK], context) as port,
        _client(f"https://127.0.0.1:{port}", UpstreamTlsConfig(ca=ca)) as client,
    ):
        with pytest.raises(UnreachableError) as raised:
            await client.send("/v1/embeddings", b"{}")

    assert f"the certificate of 127.0.0.1:{port} is for other names" in raised.value.detail
    assert "tls.ca" not in raised.value.detail
    assert "_ssl" not in raised.value.detail


async def test_a_client_certificate_is_sent_on_request(authority: trustme.CA, ca: Path, tmp_path: Path) -> None:
    """With its key in the same file or in another one."""
    ours = authority.issue_cert("us.example")
    ours.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    async with raw_server([OK], _server_context(authority, asks_client=True)) as port:
        tls = UpstreamTlsConfig(ca=ca, certificate=tmp_path / "both.pem")
        async with _client(f"https://127.0.0.1:{port}", tls) as client:
            assert (await client.send("/v1/embeddings", b"{}")).status == 200


@pytest.mark.parametrize("part", ["ca", "certificate"])
async def test_an_invalid_certificate_file_is_named(part: str, tmp_path: Path) -> None:
    """With its path, for operators."""
    (tmp_path / "bad.pem").write_text("nothing")
    for name in ("bad.pem", "missing.pem"):
        tls = UpstreamTlsConfig.model_validate({part: tmp_path / name})
        async with _client("https://127.0.0.1:1", tls) as client:
            with pytest.raises(UnreachableError) as raised:
                await client.send("/v1/embeddings", b"{}")
        assert f"tls.{part} {tmp_path / name}" in raised.value.detail


async def test_connection_errors_are_described_to_operators() -> None:
    """A refused port, an unknown host and a server without TLS differ; clients get one message."""
    port = free_port()
    async with raw_server([OK], waits=False) as plain:
        faults = {
            f"http://127.0.0.1:{port}": f"127.0.0.1:{port} cannot be reached: Connection refused",
            f"http://{NOWHERE}": f"the host {NOWHERE} is unknown",
            f"https://127.0.0.1:{plain}": "TLS handshake with",
        }
        for url, said in faults.items():
            async with _client(url) as client:
                with pytest.raises(UnreachableError) as raised:
                    await client.send("/v1/embeddings", b"{}")
            assert str(raised.value) == "The upstream cannot be reached."
            assert said in raised.value.detail


async def test_the_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, ca: Path
) -> None:
    """A tunnel for `https://`, the request itself for `http://`, and none for hosts in `NO_PROXY`."""
    heads: list[bytes] = []
    async with (
        http_proxy(heads) as proxy,
        raw_server([OK], _server_context(authority)) as port,
        raw_server([OK]) as direct,
    ):
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://user:pass%40word@127.0.0.1:{proxy}")
        async with _client(f"https://127.0.0.1:{port}", UpstreamTlsConfig(ca=ca)) as client:
            assert (await client.send("/v1/embeddings", b"{}")).status == 200
        async with _client(f"http://{NOWHERE}") as client:
            assert (await client.send("/v1/embeddings", b"{}")).status == 200
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with _client(f"http://127.0.0.1:{direct}") as client:
            assert (await client.send("/v1/embeddings", b"{}")).status == 200

    assert heads[0].startswith(f"CONNECT 127.0.0.1:{port} ".encode())
    assert heads[1].startswith(f"POST http://{NOWHERE}/v1/embeddings ".encode())
    assert len(heads) == 2
    assert all(b"proxy-authorization: basic dxnlcjpwyxnzqhdvcmq=" in head.lower() for head in heads)


async def test_an_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the proxy, not as the upstream."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    async with _client(f"http://{NOWHERE}") as client:
        with pytest.raises(UnreachableError) as raised:
            await client.send("/v1/embeddings", b"{}")

    assert "the proxy of the environment" in raised.value.detail


async def test_an_unsupported_kind_of_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its variable and the remedy."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    async with _client(f"https://{NOWHERE}") as client:
        with pytest.raises(GatewayError) as raised:
            await client.send("/v1/embeddings", b"{}")

    assert "HTTPS_PROXY" in raised.value.detail
    assert "NO_PROXY" in raised.value.detail


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

# Responses with the body `{}`.
_FRAMINGS = {
    "chunks and trailers": [_HEAD, b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\nX-Sum: 1\r\n\r\n"],
    "until the end of the connection": [_HEAD + b"\r\n", b"{", b"}"],
    "byte by byte": [OK[index : index + 1] for index in range(len(OK))],
}

# Responses that are none, and what operators read about them.
_BROKEN = {
    "a header that is too long": (_HEAD + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n", "not HTTP"),
    "another protocol": (b"220 mail.example ESMTP\r\n\r\n", "not HTTP"),
    "no byte": (b"", "before it answered"),
    "half a head": (_HEAD, "closed the connection"),
}


@pytest.mark.parametrize("pieces", _FRAMINGS.values(), ids=_FRAMINGS)
async def test_every_framing_of_a_response_is_read(pieces: list[bytes]) -> None:
    """Its length is said in advance, said for each chunk, or not said at all."""
    async with raw_server(pieces) as port, _client(f"http://127.0.0.1:{port}") as client:
        response = await client.send("/v1/embeddings", b"{}")
        assert await response.read() == b"{}"


@pytest.mark.parametrize(("answer", "said"), _BROKEN.values(), ids=_BROKEN)
async def test_what_is_no_response_is_a_gateway_error(answer: bytes, said: str) -> None:
    """And its connection is not used again."""
    async with raw_server([answer]) as port, _client(f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            with pytest.raises(GatewayError) as raised:
                await client.send("/v1/embeddings", b"{}")
            assert said in raised.value.detail


async def test_a_response_that_ends_early_is_a_gateway_error() -> None:
    """Its status is known, its body is not complete."""
    pieces = [_HEAD + b"Content-Length: 10\r\n\r\n{}"]
    async with raw_server(pieces) as port, _client(f"http://127.0.0.1:{port}") as client:
        response = await client.send("/v1/embeddings", b"{}")
        with pytest.raises(GatewayError, match="in the middle of its response"):
            await response.read()
