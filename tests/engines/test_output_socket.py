"""The socket of an engine's outputs, with a real one of pyzmq at its other end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from appliance.engines.vllm.output_socket import OutputSocket


@pytest.fixture
async def sockets(tmp_path: Path) -> AsyncIterator[tuple[zmq.Socket[bytes], Any]]:
    """The one of an engine, and the one of its front end, as vLLM has it."""
    context = zmq.asyncio.Context()
    with context.socket(zmq.PULL) as front_end, zmq.Context(context).socket(zmq.PUSH) as engine:
        OutputSocket(front_end)
        front_end.bind(f"ipc://{tmp_path}/outputs")
        engine.connect(f"ipc://{tmp_path}/outputs")
        yield engine, front_end
    context.term()


async def _receive(socket: Any) -> list[bytes]:
    return [frame.bytes for frame in await asyncio.wait_for(socket.recv_multipart(copy=False), 10)]


async def test_messages_come_whole_and_in_order(sockets: tuple[zmq.Socket[bytes], Any]) -> None:
    """Those that wait, and those that are waited for."""
    engine, front_end = sockets
    first = asyncio.create_task(_receive(front_end))
    await asyncio.sleep(0)
    engine.send(b"1")
    assert await first == [b"1"]
    engine.send_multipart([b"2", b"", b"2"])
    engine.send(b"3")

    assert [await _receive(front_end), await _receive(front_end)] == [[b"2", b"", b"2"], [b"3"]]


async def test_the_loop_rests_while_nobody_receives(sockets: tuple[zmq.Socket[bytes], Any]) -> None:
    """A message whose reader is gone does not occupy the event loop, and the next reader gets it."""
    engine, front_end = sockets
    left = asyncio.create_task(_receive(front_end))
    await asyncio.sleep(0)
    left.cancel()
    engine.send(b"1")
    await asyncio.sleep(0.05)
    calls = 0
    original = front_end._handle_events

    def count(*arguments: int) -> None:
        nonlocal calls
        calls += 1
        original(*arguments)

    front_end._handle_events = count
    await asyncio.sleep(0.05)

    assert calls == 0
    assert await _receive(front_end) == [b"1"]


async def test_a_closed_socket_says_so(sockets: tuple[zmq.Socket[bytes], Any]) -> None:
    """As pyzmq does."""
    engine, front_end = sockets
    engine.send(b"1")
    await _receive(front_end)
    front_end.close(linger=0)

    with pytest.raises(zmq.ZMQError):
        await _receive(front_end)
