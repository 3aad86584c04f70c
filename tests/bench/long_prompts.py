"""What long prompts do to others: running streams and probes, before and while long prompts come at a rate.

``python -m bench.long_prompts --port 8080 --model NAME --process PID --probes /health`` prints what it measured, as
JSON. The streams are those of `chats.py`. A prompt is English, and no other's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from bench.chats import Load, Run, connected, processor_seconds, share

_WORDS = (Path(__file__).parent / "quality.txt").read_text().split()

# Different prompts, made before; each is sent again after all others, with another number at its beginning, so that no
# server has seen the beginning of one.
_PROMPTS = 16
_NUMBER = "00000000"

_WARM_UP_SECONDS = 4.0

# How often each probe is asked, and how long it may take.
_PROBE_SECONDS = 0.05
_TIMEOUT_SECONDS = 60.0

_REFUSALS = (b"429", b"503")


@dataclass(slots=True)
class Window:
    """What happened within some seconds; times are in seconds.

    `firsts` are those of long prompts; of those that were still waiting, as long as they had waited. `faults` are
    answers that were neither one nor a refusal, and probes that failed.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    tokens: float = 0.0
    gaps: list[float] = field(default_factory=list)
    probes: dict[str, list[float]] = field(default_factory=dict)
    offered: int = 0
    delivered: int = 0
    refused: int = 0
    firsts: list[float] = field(default_factory=list)
    faults: int = 0

    def figures(self) -> dict[str, float]:
        """What is kept of it."""
        probes = [each for taken in self.probes.values() for each in taken]
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "processor_share": self.processor_seconds / self.seconds,
            "gap_p50_ms": share(self.gaps, 50) * 1000,
            "gap_p99_ms": share(self.gaps, 99) * 1000,
            "longest_gap_ms": max(self.gaps, default=0.0) * 1000,
            "probe_p50_ms": share(probes, 50) * 1000,
            "probe_p99_ms": share(probes, 99) * 1000,
            "offered_per_second": self.offered / self.seconds,
            "answered_per_second": self.delivered / self.seconds,
            "refused_per_second": self.refused / self.seconds,
            "prompt_first_p50_ms": share(self.firsts, 50) * 1000,
            "prompt_first_p99_ms": share(self.firsts, 99) * 1000,
            "faults": self.faults,
        }


def prompt(characters: int, seed: int) -> str:
    """English of so many characters, about four and a half for each token."""
    draw = random.Random(seed)
    text = f"{_NUMBER} "
    while len(text) < characters:
        text += " ".join(draw.choices(_WORDS, k=1000)) + " "
    return text[:characters]


def request(model: str, content: str) -> bytes:
    """A chat with a short answer, as a client sends it."""
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 8, "stream": True}).encode()
    head = f"Host: bench\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body


async def _ask(port: int, data: bytes, window: Window) -> None:
    """Send a long prompt, and see when its answer begins."""
    began = time.perf_counter()
    window.offered += 1
    is_waiting = True
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            status = (await reader.readline()).split(b" ", 2)[1]
            await reader.readuntil(b"\r\n\r\n")
            if status in _REFUSALS:
                is_waiting = False
                window.refused += 1
                return
            window.faults += status != b"200"
            await reader.readuntil(b"data: ")
            is_waiting = False
            window.firsts.append(time.perf_counter() - began)
            window.delivered += 1
            await reader.read()
        finally:
            writer.transport.abort()
    except (OSError, asyncio.IncompleteReadError, IndexError):
        is_waiting = False
        window.faults += 1
    finally:
        if is_waiting:
            window.firsts.append(time.perf_counter() - began)


async def _probe(port: int, path: str, window: Window) -> None:
    """Ask again and again on one connection, until cancelled."""
    taken = window.probes.setdefault(path, [])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            began = time.perf_counter()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
            taken.append(time.perf_counter() - began)
            window.faults += b" 200 " not in head[:16]
    finally:
        writer.transport.abort()


async def _observe(
    port: int, process: psutil.Process, run: Run, seconds: float, probes: Sequence[str], prompts: Sequence[bytes]
) -> Window:
    """See what happens within so many seconds, while one of the prompts is sent at each of even intervals."""
    window = Window()
    run.gaps, tokens = window.gaps, run.tokens
    processor, began = processor_seconds(process), time.perf_counter()
    tasks = [asyncio.create_task(_probe(port, path, window)) for path in probes]
    for number, data in enumerate(prompts):
        await asyncio.sleep(max(0.0, began + seconds * number / len(prompts) - time.perf_counter()))
        tasks.append(asyncio.create_task(_ask(port, data, window)))
    await asyncio.sleep(max(0.0, began + seconds - time.perf_counter()))
    window.seconds = time.perf_counter() - began
    window.processor_seconds = processor_seconds(process) - processor
    window.tokens = run.tokens - tokens
    run.gaps = []
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    window.faults += sum(isinstance(each, Exception) for each in outcomes)
    return window


async def measure(
    port: int, process: psutil.Process, load: Load, rate: float, characters: int, probes: Sequence[str]
) -> list[dict[str, float]]:
    """The figures of a quiet time and of one with long prompts, after one of those."""
    prompts = [request(load.model, prompt(characters, seed)) for seed in range(_PROMPTS)]
    run = Run(load)
    transports = await connected(port, run)
    first = Window()
    await _ask(port, prompts[0], first)
    quiet = await _observe(port, process, run, load.seconds, probes, ())
    sent = [
        prompts[number % _PROMPTS].replace(_NUMBER.encode(), f"{random.randrange(10**8):08}".encode())
        for number in range(round(rate * load.seconds))
    ]
    loaded = await _observe(port, process, run, load.seconds, probes, sent)
    run.is_over = True
    for transport in transports:
        transport.abort()
    loaded.faults += run.faults + first.faults
    return [quiet.figures(), loaded.figures()]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--process", type=int, required=True, help="the server's first process")
    parser.add_argument("--model", required=True)
    parser.add_argument("--connections", type=int, default=64, help="running streams")
    parser.add_argument("--tokens", type=int, default=256, help="of each of their answers")
    parser.add_argument("--rate", type=float, default=20.0, help="long prompts a second")
    parser.add_argument("--characters", type=int, default=205_000, help="of each of them")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--probes", nargs="+", default=["/health"])
    given = parser.parse_args()
    load = Load(given.model, given.connections, given.tokens, _WARM_UP_SECONDS, given.seconds, True, has_words=True)
    process = psutil.Process(given.process)
    sys.stdout.write(
        json.dumps(uvloop.run(measure(given.port, process, load, given.rate, given.characters, given.probes)))
    )


if __name__ == "__main__":
    main()
