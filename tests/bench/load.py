"""A load generator: a closed loop of bare connections that read no more of an answer than where it ends.

``python -m bench.load --port 8080 --model NAME --connections 16 --seconds 5`` prints what it measured, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import cast

import uvloop

_END_OF_CHUNKS = b"0\r\n\r\n"


def request(model: str, *, stream: bool) -> bytes:
    """A chat completion as a client sends it."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant. " * 4},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    body = json.dumps({"model": model, "messages": messages, "temperature": 0.5, "stream": stream}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer sk-bench\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer ended."""

    def __init__(self, data: bytes, run: _Run) -> None:
        self._request = data
        self._run = run
        self._buffer = b""
        self._length: int | None = None
        self._in_body = False
        self._is_over = False
        self._began = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.faults += not self._is_over
        self._run.lost()

    def data_received(self, data: bytes) -> None:
        self._run.count(data)
        self._buffer += data
        if not self._in_body and not self._read_head():
            return
        if self._length is None:
            if self._buffer.endswith(_END_OF_CHUNKS):
                self._ended()
            else:
                self._buffer = self._buffer[-8:]
        elif len(self._buffer) >= self._length:
            self._ended()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._buffer[:end].lower()
        if b" 200 " not in head[:16]:
            self._run.faults += 1
        _, found, rest = head.partition(b"content-length:")
        self._length = int(rest.partition(b"\r\n")[0]) if found else None
        self._buffer = self._buffer[end + 4 :]
        self._in_body = True
        return True

    def _ended(self) -> None:
        self._run.latencies.append(time.perf_counter() - self._began)
        if self._run.wait_for_more():
            self._send()
        else:
            self._is_over = True
            self._transport.close()

    def _send(self) -> None:
        self._buffer, self._in_body = b"", False
        self._began = time.perf_counter()
        self._transport.write(self._request)


class _Run:
    """What all connections share: when it is over, and what was measured."""

    def __init__(self, connections: int, most: int, seconds: float) -> None:
        self.latencies: list[float] = []
        self.events = 0
        self.faults = 0
        self.over = asyncio.get_running_loop().create_future()
        self._open = connections
        self._left = most - connections
        self._began = time.perf_counter()
        self._deadline = self._began + seconds
        self._ended = self._began

    def count(self, data: bytes) -> None:
        """The events in it, as long as all streams are under way."""
        now = time.perf_counter()
        if now < self._deadline:
            self.events += data.count(b"data: ")
            self._ended = now

    def wait_for_more(self) -> bool:
        self._left -= 1
        return self._left >= 0 and time.perf_counter() < self._deadline

    def lost(self) -> None:
        self._open -= 1
        if not self._open and not self.over.done():
            self.over.set_result(None)

    def measured(self) -> dict[str, float]:
        """Counts, rates a second, and latencies in milliseconds."""
        ordered = sorted(self.latencies)
        percentiles = {
            f"p{share}": ordered[min(share * len(ordered) // 100, len(ordered) - 1)] * 1000 for share in (50, 99)
        }
        return {
            "requests": len(ordered),
            "rate": len(ordered) / (time.perf_counter() - self._began),
            "event_rate": self.events / max(self._ended - self._began, 1e-9),
            "faults": self.faults,
            **percentiles,
        }


async def load(port: int, data: bytes, connections: int, most: int, seconds: float) -> dict[str, float]:
    """Ask over and over on so many connections, until so many requests or seconds are over."""
    run = _Run(connections, most, seconds)
    loop = asyncio.get_running_loop()
    await asyncio.gather(
        *(loop.create_connection(lambda: _Connection(data, run), "127.0.0.1", port) for _ in range(connections))
    )
    await run.over
    return run.measured()


def main() -> None:
    """Load, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--requests", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=10.0**9)
    parser.add_argument("--stream", action="store_true")
    given = parser.parse_args()
    data = request(given.model, stream=given.stream)
    measured = uvloop.run(load(given.port, data, given.connections, given.requests, given.seconds))
    sys.stdout.write(json.dumps(measured))


if __name__ == "__main__":
    main()
