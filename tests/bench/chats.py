"""A load generator that counts tokens: so many chats at once for so long, each followed by the next.

``python -m bench.chats --port 8080 --model NAME --process PID --connections 64`` prints what it measured, as JSON, and
what the processes of the server spent meanwhile. It looks at no more of an answer than a few counts of bytes, or it
would be what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import psutil
import uvloop

_END = b"0\r\n\r\n"

# How long a server may take to accept one more.
_CONNECT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: so many chats at once, so many tokens each, as streams or in one piece.

    `has_words` is that each token has one space, as those of `fake_core.py`, so that all are counted, also where an
    event has several. Otherwise an event counts as one, and what that is off is put right at the end of each answer.
    """

    model: str
    connections: int
    tokens: int
    warm_up_seconds: float
    seconds: float
    is_streamed: bool
    has_words: bool
    prompt_words: int = 0
    """Words before the question, each of which is a token."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What happened between the warm-up and the end.

    `firsts` are seconds to the first token of a stream, or to the end of an answer in one piece; of those that were
    still waiting, as long as they had waited. `faults` are answers that were no answer, or had another length.
    `longest_gap` is how long a stream waited at most, in seconds, once it had begun.
    """

    seconds: float
    tokens: float
    events: float
    answers: int
    processor_seconds: float
    resident_bytes: int
    firsts: list[float]
    faults: int
    longest_gap: float


class Run:
    """What all connections share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.tokens = 0.0
        self.events = 0.0
        self.answers = 0
        self.faults = 0
        self.gaps: list[float] = []
        self.is_over = False
        self.firsts: list[float] = []
        self.waiting: dict[Chat, float] = {}

    def request(self, tokens: int) -> bytes:
        """A chat as a client sends it."""
        long_prompt = " the" * self.load.prompt_words
        body = json.dumps(
            {
                "model": self.load.model,
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant. " * 4},
                    {"role": "user", "content": f"{long_prompt}What is the capital of France?"},
                ],
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": self.load.is_streamed,
            }
        ).encode()
        head = f"Host: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body


class Chat(asyncio.Protocol):
    """A connection that asks again as soon as it is answered."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._request = run.request(run.load.tokens)
        self._expected = 0
        self._head: bytes | None = b""
        self._length: int | None = None
        self._end = b""
        self._tokens = 0.0
        self._last: float | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # So that they do not all end at once, and begin at once.
        tokens = random.randint(1, self._run.load.tokens) if self._run.load.is_streamed else self._run.load.tokens
        self._ask(tokens, self._run.request(tokens))

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.faults += not self._run.is_over

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._read(head)
        if self._length is None:
            self._stream(data)
        else:
            self._length -= len(data)
            if self._length <= 0:
                self._first()
                self._run.tokens += self._expected
                self._ended(self._expected)

    def _read(self, head: bytes) -> None:
        self._head = None
        self._run.faults += not head.startswith(b"HTTP/1.1 200 ")
        _, found, rest = head.lower().partition(b"content-length:")
        self._length = int(rest.partition(b"\r\n")[0]) if found else None

    def _stream(self, data: bytes) -> None:
        """
        A word has one space and so has an event, whose end is two line feeds; each chunk of HTTP has two more, and two
        carriage returns. Single bytes, because anything longer may be cut in two.
        """
        if not data:
            return
        self._first()
        now = time.perf_counter()
        if self._last is not None:
            self._run.gaps.append(now - self._last)
        self._last = now
        events = (data.count(b"\n") - data.count(b"\r")) / 2
        tokens = data.count(b" ") - events if self._run.load.has_words else events
        self._tokens += tokens
        self._run.events += events
        self._run.tokens += tokens
        self._end = (self._end + data)[-len(_END) :]
        if self._end == _END:
            if not self._run.load.has_words:
                self._run.tokens += self._expected - self._tokens
                self._tokens = self._expected
            self._ended(round(self._tokens))

    def _first(self) -> None:
        began = self._run.waiting.pop(self, None)
        if began is not None:
            self._run.firsts.append(time.perf_counter() - began)

    def _ended(self, tokens: int) -> None:
        self._run.faults += tokens != self._expected
        self._run.answers += 1
        self._ask(self._run.load.tokens, self._request)

    def _ask(self, tokens: int, request: bytes) -> None:
        self._head, self._end, self._tokens, self._expected = b"", b"", 0.0, tokens
        self._last = None
        self._run.waiting[self] = time.perf_counter()
        self._transport.write(request)


async def measure(port: int, process: psutil.Process, load: Load) -> Measured:
    """Load, and see what is done between the warm-up and the end."""
    run = Run(load)
    transports = await connected(port, run)
    run.firsts.clear()
    run.gaps.clear()
    before, began = (run.tokens, run.events, run.answers, processor_seconds(process)), time.perf_counter()
    await asyncio.sleep(load.seconds)
    after, ended = (run.tokens, run.events, run.answers, processor_seconds(process)), time.perf_counter()
    tokens, events, answers, processor = (late - early for late, early in zip(after, before, strict=True))
    resident = sum(each.memory_info().rss for each in _family(process))
    longest_gap = max(run.gaps, default=0.0)
    firsts = run.firsts + [ended - since for since in run.waiting.values()]
    run.is_over = True
    for transport in transports:
        transport.abort()
    return Measured(ended - began, tokens, events, int(answers), processor, resident, firsts, run.faults, longest_gap)


async def connected(port: int, run: Run) -> list[asyncio.Transport]:
    """Connect all, one after the other in half of the time that the warm-up takes; return after the other half."""
    loop = asyncio.get_running_loop()
    begins = loop.time() + run.load.warm_up_seconds
    transports = []
    for _ in range(run.load.connections):
        async with asyncio.timeout(_CONNECT_SECONDS):
            transport, _ = await loop.create_connection(lambda: Chat(run), "127.0.0.1", port)
        transports.append(transport)
        await asyncio.sleep(run.load.warm_up_seconds / 2 / run.load.connections)
    await asyncio.sleep(begins - loop.time())
    return transports


def share(values: Sequence[float], percent: int) -> float:
    """Return a percentile, 0 of no values."""
    ordered = sorted(values)
    return ordered[min(percent * len(ordered) // 100, len(ordered) - 1)] if ordered else 0.0


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def processor_seconds(process: psutil.Process) -> float:
    """Seconds that processors have worked for a server, also in the kernel."""
    total = 0.0
    for each in _family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--process", type=int, required=True, help="the server's first process")
    parser.add_argument("--model", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--whole", action="store_true", help="answers in one piece")
    parser.add_argument("--words", action="store_true", help="each token has one space")
    parser.add_argument("--prompt-words", type=int, default=0, help="words before the question")
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    is_streamed = not given.whole
    load = Load(
        given.model,
        given.connections,
        given.tokens,
        given.warm_up,
        given.seconds,
        is_streamed,
        has_words=given.words,
        prompt_words=given.prompt_words,
    )
    sys.stdout.write(json.dumps(asdict(uvloop.run(measure(given.port, psutil.Process(given.process), load)))))


if __name__ == "__main__":
    main()
