"""An upstream that is never the bottleneck: canned bytes from a bare protocol, in a process of its own.

``python -m bench.null_upstream --model NAME --events 100 --tick 0.01`` prints its port. Each of its streams
has so many events, one at each tick of so many seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import cast

import uvloop


def _whole(body: object) -> bytes:
    text = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text


def _chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


class Canned:
    """The bytes of every answer, made once."""

    def __init__(self, model: str, events: int) -> None:
        self.events = events
        self.chat = _whole(self._chat(model))
        self.listing = _whole({"object": "list", "data": [{"id": model, "object": "model", "created": 1}]})
        self.stream_head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.event = self._event(model, {"content": " Paris"})
        self.stream_end = self._event(model, {}, "stop") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    @staticmethod
    def _chat(model: str) -> object:
        message = {"role": "assistant", "content": "The capital of France is Paris. " * 8, "refusal": None}
        return {
            "id": "chatcmpl-0123456789",
            "object": "chat.completion",
            "created": 1760000000,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 21, "completion_tokens": 64, "total_tokens": 85},
        }

    @staticmethod
    def _event(model: str, delta: object, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        head = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1760000000, "model": model}
        return _chunk(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())


class Null(asyncio.Protocol):
    """One connection, kept alive; it reads no more of a request than where it ends and whether it wants a stream."""

    def __init__(self, canned: Canned, streams: dict[Null, int]) -> None:
        self._canned = canned
        self._streams = streams
        self._buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            body_end = end + 4 + _length(head)
            if len(self._buffer) < body_end:
                return
            body, self._buffer = self._buffer[end + 4 : body_end], self._buffer[body_end:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self.transport.write(self._canned.listing)
        elif b'"stream":true' in body.replace(b" ", b""):
            self.transport.write(self._canned.stream_head)
            self._streams[self] = self._canned.events
        else:
            self.transport.write(self._canned.chat)


def _length(head: bytes) -> int:
    _, found, rest = head.partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


async def serve(canned: Canned, tick_seconds: float) -> None:
    """Listen, and give every stream an event at each tick."""
    streams: dict[Null, int] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Null(canned, streams), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        await asyncio.sleep(tick_seconds)
        for stream, left in list(streams.items()):
            stream.transport.write(canned.event if left else canned.stream_end)
            if left:
                streams[stream] = left - 1
            else:
                del streams[stream]


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--tick", type=float, required=True)
    given = parser.parse_args()
    uvloop.run(serve(Canned(given.model, given.events), given.tick))


if __name__ == "__main__":
    main()
