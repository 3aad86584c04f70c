"""A load generator whose requests come at a rate, whatever becomes of the ones before: an open loop.

``python -m bench.arrivals load --port 8080 --model NAME --rate 12 --seconds 30`` prints each answer as JSON, and
``python -m bench.arrivals probes --port 8080 --seconds 30`` each probe's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import uvloop

PROBES = ("/livez", "/readyz", "/metrics")

# How often each probe is asked.
_PROBE_SECONDS = 0.2

_PROMPT = "Write about the sea, the sky, the ships and the people who live from them. " * 4


@dataclass(slots=True)
class Answer:
    """One request: its path, its status, when it began, seconds to the first byte of the body and to the last.

    The status is 0 where there was none, 1 where the answer broke off.
    """

    path: str
    began: float
    status: int = 0
    first: float = 0.0
    last: float = 0.0
    retry_after: str | None = None


def body(model: str, tokens: int, *, stream: bool = True) -> Mapping[str, Any]:
    """A chat whose answer has just so many tokens, and whose prompt is no other's."""
    content = f"{random.random()} {_PROMPT}"
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }


async def _ask(session: aiohttp.ClientSession, path: str, sent: Mapping[str, Any] | None, into: list[Answer]) -> None:
    answer = Answer(path, time.perf_counter())
    into.append(answer)
    try:
        async with session.request("GET" if sent is None else "POST", path, json=sent) as response:
            answer.retry_after = response.headers.get("Retry-After")
            await response.content.readany()
            answer.first = time.perf_counter() - answer.began
            rest = await response.content.read()
            answer.status = 1 if b'data: {"error"' in rest else response.status
    except (aiohttp.ClientError, TimeoutError):
        pass
    answer.last = time.perf_counter() - answer.began


async def load(
    port: int, model: str, rate: float, seconds: float, tokens: int, seed: int | None = None
) -> list[Answer]:
    """Requests at random moments, so many a second on the average, until the seconds are over and all are answered."""
    answers: list[Answer] = []
    moments = random.Random(seed)
    async with _session(port) as session, asyncio.TaskGroup() as group:
        ends = due = time.perf_counter()
        ends += seconds
        while due < ends:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(_ask(session, "/v1/chat/completions", body(model, tokens), answers))
            due += moments.expovariate(rate)
    return answers


async def closed(port: int, model: str, connections: int, seconds: float, tokens: int) -> list[Answer]:
    """So many clients, each asking again as soon as it is answered."""
    answers: list[Answer] = []
    ends = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < ends:
            await _ask(session, "/v1/chat/completions", body(model, tokens), answers)

    async with _session(port) as session, asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(client(session))
    return answers


async def probes(port: int, seconds: float) -> list[Answer]:
    """Each probe over and over."""
    answers: list[Answer] = []
    ends = time.perf_counter() + seconds
    async with _session(port) as session:
        while time.perf_counter() < ends:
            for path in PROBES:
                await _ask(session, path, None, answers)
            await asyncio.sleep(_PROBE_SECONDS)
    return answers


def _session(port: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        f"http://127.0.0.1:{port}",
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600),
    )


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["load", "closed", "probes"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, help="of the moments of requests")
    given = parser.parse_args()
    if given.what == "load":
        work = load(given.port, given.model, given.rate, given.seconds, given.tokens, given.seed)
    elif given.what == "closed":
        work = closed(given.port, given.model, given.connections, given.seconds, given.tokens)
    else:
        work = probes(given.port, given.seconds)
    sys.stdout.write(json.dumps([asdict(answer) for answer in uvloop.run(work)]))


if __name__ == "__main__":
    main()
