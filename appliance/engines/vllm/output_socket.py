"""The socket of an engine's outputs, read directly: pyzmq's futures cost more than the tokens of a small step."""

from __future__ import annotations

import asyncio
from typing import Any


class OutputSocket:
    """Replaces how one socket of pyzmq receives; it has one reader, which comes back for each message."""

    def __init__(self, socket: Any) -> None:  # Any: pyzmq types all private attributes as options
        import zmq

        self._again, self._nowait, self._events = zmq.Again, int(zmq.DONTWAIT), zmq.EVENTS
        self._socket, self._blocking = socket, socket._shadow_sock
        self._waiter: asyncio.Future[list[zmq.Frame]] | None = None
        socket.recv_multipart = self._recv_multipart
        socket._handle_events = self._handle_events

    def _recv_multipart(self, **_: bool) -> asyncio.Future[Any]:
        """Receive a message as frames that are not copied, as vLLM asks for."""
        # pyzmq watches the socket in the loop in which it is first asked for.
        self._waiter = self._socket._get_loop().create_future()
        self._handle_events()
        return self._waiter

    def _handle_events(self, *_: int) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            # The descriptor stays readable until this is read.
            self._blocking.get(self._events)
            return
        try:
            frames = [self._blocking.recv(self._nowait, copy=False)]
            while frames[-1].more:
                frames.append(self._blocking.recv(self._nowait, copy=False))
        except self._again:
            return
        except Exception as error:
            waiter.set_exception(error)
        else:
            waiter.set_result(frames)
