"""The listener over real sockets: certificates, and how one takes the place of another."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from litestar import Litestar, get
from litestar.response import Stream
from server_process import free_port

from appliance.auth.certificates import Certificates
from appliance.config.server import TlsConfig
from appliance.server.listener import Listener

AUTHORITY = trustme.CA()


@dataclass(slots=True)
class Volume:
    """A secret as Kubernetes mounts it: files that are links through a link that is exchanged."""

    root: Path
    serial: int = 0

    def put(self, issued: trustme.LeafCert, key: bytes | None = None) -> x509.Certificate:
        """Exchange all files at once; `key` instead of the certificate's own."""
        place = self.root / f"..{self.serial}"
        place.mkdir()
        chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
        (place / "tls.crt").write_bytes(chain)
        (place / "tls.key").write_bytes(key or issued.private_key_pem.bytes())
        (place / "ca.crt").write_bytes(AUTHORITY.cert_pem.bytes())
        link = self.root / "..new"
        link.symlink_to(place.name)
        link.replace(self.root / "..data")
        for name in ("tls.crt", "tls.key", "ca.crt"):
            if not (self.root / name).is_symlink():
                (self.root / name).symlink_to(f"..data/{name}")
        self.serial += 1
        return x509.load_pem_x509_certificates(chain)[0]

    def config(self, *, asks_clients: bool = False) -> TlsConfig:
        """The config that names it."""
        client_ca = self.root / "ca.crt" if asks_clients else None
        return TlsConfig(certificate=self.root / "tls.crt", key=self.root / "tls.key", client_ca=client_ca)


@get("/")
async def _quick() -> str:
    return "done"


@get("/slow")
async def _slow() -> Stream:
    async def words() -> AsyncIterator[bytes]:
        _begun.set()
        yield b"begun "
        while _held.is_set():
            await asyncio.sleep(0.05)
        yield b"ended"

    return Stream(words())


_held, _begun = asyncio.Event(), asyncio.Event()


@asynccontextmanager
async def _serving(config: TlsConfig) -> AsyncGenerator[int]:
    port = free_port()
    app = Litestar([_quick, _slow], openapi_config=None)
    listener = Listener(app, "127.0.0.1", port, Certificates(config), settle_seconds=6)
    serving = asyncio.create_task(listener.serve())
    async with asyncio.timeout(20):
        while not await _is_listening(port):
            await asyncio.sleep(0.05)
    try:
        yield port
    finally:
        listener.stop()
        async with asyncio.timeout(20):
            await serving


async def _is_listening(port: int) -> bool:
    try:
        await _get(port)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def _get(port: int, path: str = "/", context: ssl.SSLContext | None = None) -> tuple[bytes, bytes]:
    """The certificate that was shown, and the answer."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context or _trusting(), server_hostname="localhost"
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    try:
        return shown, await reader.read()
    finally:
        writer.close()


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


async def _wait_until_shown(port: int, certificate: x509.Certificate) -> None:
    """Until new connections see no other."""
    async with asyncio.timeout(30):
        while {(await _get(port))[0] for _ in range(3)} != {_der(certificate)}:
            await asyncio.sleep(0.1)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """One that is still empty."""
    return Volume(tmp_path)


async def test_a_new_certificate_costs_no_connection(volume: Volume) -> None:
    """While clients connect without pause the files are exchanged: none of them fails, new ones see the new
    certificate, and a stream of before goes on to its end.
    """
    first = volume.put(AUTHORITY.issue_cert("localhost"))
    seen: Counter[bytes] = Counter()
    _held.set()
    async with _serving(volume.config()) as port:
        slow = asyncio.create_task(_get(port, "/slow"))
        await _get(port)

        async def ask() -> None:
            while True:
                shown, answer = await _get(port)
                assert answer.endswith(b"done")
                seen[shown] += 1

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        while not seen[_der(first)]:
            await asyncio.sleep(0.05)
        second = volume.put(AUTHORITY.issue_cert("localhost"))
        await _wait_until_shown(port, second)
        # The old server has stopped by then.
        await asyncio.sleep(8)
        is_under_way = not slow.done()
        _held.clear()
        shown, answer = await asyncio.wait_for(slow, 20)
        failed = [task for task in asking if task.done()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    assert not failed
    assert is_under_way
    assert shown == _der(first)
    assert b"ended" in answer
    assert seen.keys() == {_der(first), _der(second)}


async def test_a_certificate_that_does_not_fit_is_not_taken(volume: Volume) -> None:
    """The one of before is shown on, and the next good one is taken."""
    first = volume.put(AUTHORITY.issue_cert("localhost"))
    stranger = AUTHORITY.issue_cert("localhost").private_key_pem.bytes()
    certificates = Certificates(volume.config())

    for key in (stranger, b"nonsense"):
        volume.put(AUTHORITY.issue_cert("localhost"), key)
        assert not certificates.refresh()

    assert certificates.current.chain.startswith(first.public_bytes(Encoding.PEM))
    second = volume.put(AUTHORITY.issue_cert("localhost"))
    assert certificates.refresh()
    assert certificates.current.chain.startswith(second.public_bytes(Encoding.PEM))


async def test_clients_without_a_certificate_are_turned_away(volume: Volume) -> None:
    """With `client_ca` only those that its authorities know get an answer."""
    volume.put(AUTHORITY.issue_cert("localhost"))
    known, stranger = _trusting(), _trusting()
    AUTHORITY.issue_cert("client").configure_cert(known)
    trustme.CA().issue_cert("client").configure_cert(stranger)

    async with _serving(volume.config(asks_clients=True)) as port:
        _, answer = await _get(port, context=known)
        for context in (_trusting(), stranger):
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await _get(port, context=context)

    assert answer.endswith(b"done")


async def test_nothing_is_left_open(volume: Volume) -> None:
    """Neither the certificate in memory nor the socket outlives the listener."""
    volume.put(AUTHORITY.issue_cert("localhost"))

    async with _serving(volume.config()) as port:
        await _get(port)
        during = _open_certificates()

    assert len(during) == 2
    assert not _open_certificates()


async def test_nobody_waits_for_one_that_stops(volume: Volume) -> None:
    """While an answer is still under way new connections are refused, and that answer is finished."""
    volume.put(AUTHORITY.issue_cert("localhost"))
    port = free_port()
    listener = Listener(
        Litestar([_quick, _slow], openapi_config=None), "127.0.0.1", port, Certificates(volume.config())
    )
    serving = asyncio.create_task(listener.serve())
    async with asyncio.timeout(30):
        while not await _is_listening(port):
            await asyncio.sleep(0.05)
        _held.set()
        _begun.clear()
        slow = asyncio.create_task(_get(port, "/slow"))
        await _begun.wait()
        listener.stop()
        while await _is_listening(port):
            await asyncio.sleep(0.05)
        is_under_way = not slow.done()
        _held.clear()
        _, answer = await slow
        await serving

    assert is_under_way
    assert b"ended" in answer


def _open_certificates() -> list[str]:
    links = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return [str(fd) for fd in links if "memfd:certificate" in str(fd.readlink())]
