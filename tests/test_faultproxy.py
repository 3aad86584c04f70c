"""The fault proxy does to a connection what it says, so that the tests built on it can fail."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
from faultproxy import Fault, FaultProxy
from upstreams import Answer, Upstream

BODY = bytes(range(256)) * 64


@pytest.fixture
def proxy(upstream: Upstream, fault_proxies: Callable[[int], FaultProxy]) -> FaultProxy:
    """Before an upstream that says `BODY`."""
    upstream.on("/x", Answer(body=BODY, media_type="application/octet-stream"))
    return fault_proxies(upstream.port)


def _read(connection: socket.socket, received: bytearray) -> None:
    while piece := connection.recv(100):
        received += piece


def _ask(proxy: FaultProxy, seconds: float = 5) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=seconds) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = bytearray()
        _read(connection, received)
        return bytes(received)


def test_without_a_fault_all_passes(proxy: FaultProxy) -> None:
    """Every byte, in its order."""
    assert _ask(proxy).endswith(BODY)


@pytest.mark.parametrize("kind", ["reset", "hang_up"])
def test_a_reset_is_a_reset(proxy: FaultProxy, kind: str) -> None:
    """As often as it is told to, and then no more."""
    proxy.set(Fault(kind, times=2))  # type: ignore[arg-type]  # mypy takes the row for any text

    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            _ask(proxy)
    assert _ask(proxy).endswith(BODY)
    assert proxy.hits == 2


def test_a_reset_after_some_bytes_lets_them_arrive(proxy: FaultProxy) -> None:
    """What came before the fault is there."""
    proxy.set(Fault("fin", after=1000))
    assert len(_ask(proxy)) == 1000

    proxy.set(Fault("reset", after=1000))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        received = bytearray()
        with pytest.raises(ConnectionResetError):
            _read(connection, received)
    assert len(received) == 1000


def test_nobody_listens_while_it_refuses(proxy: FaultProxy) -> None:
    """A connection is refused, and taken again afterwards on the same port."""
    proxy.set(Fault("refuse"))
    with pytest.raises(ConnectionRefusedError):
        _ask(proxy)

    proxy.set(None)
    assert _ask(proxy).endswith(BODY)


def test_a_stall_says_nothing_more(proxy: FaultProxy) -> None:
    """The connection stays, and carries nothing."""
    proxy.set(Fault("stall", after=10))

    with pytest.raises(TimeoutError):
        _ask(proxy, 0.3)


def test_one_byte_is_flipped(proxy: FaultProxy) -> None:
    """The length is right, and one byte is wrong."""
    head = len(_ask(proxy)) - len(BODY)
    proxy.set(Fault("corrupt", after=head + 100))
    received = _ask(proxy)[head:]

    assert [i for i, (one, other) in enumerate(zip(received, BODY, strict=True)) if one != other] == [100]


def test_slow_and_late_take_their_time(proxy: FaultProxy) -> None:
    """A rate bounds the speed, a latency puts off each request; all arrives."""
    for fault in (Fault("slow", rate=len(BODY) * 5), Fault("latency", seconds=0.15)):
        proxy.set(fault)
        began = time.monotonic()

        assert _ask(proxy).endswith(BODY)
        assert time.monotonic() - began >= 0.14


def test_what_went_to_clients_is_counted(proxy: FaultProxy) -> None:
    """Since a fault was set, over all connections, also those that are closed."""
    proxy.set(None)
    received = [len(_ask(proxy)) for _ in range(2)]

    assert proxy.sent == sum(received)
