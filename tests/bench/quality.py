"""What a number format costs in quality and gains in speed on this machine's CPU.

``just bench quality`` serves the chat example in float32 and in bfloat16, in turns, and prints for each the perplexity
of a fixed text and tokens a second of 1 and of 8 streams.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from server_process import ServerProcess

EXAMPLE = Path(__file__).parents[2] / "examples/chat.yaml"
TEXT = Path(__file__).with_name("quality.txt")

FORMATS = ("float32", "bfloat16")
STREAMS = (1, 8)


@dataclass
class Measured:
    """The figures of one number format; rates are the best of all rounds."""

    perplexity: float
    rates: dict[int, float]


def main() -> None:
    """Measure both formats, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128, help="how long each answer is")
    parser.add_argument("--rounds", type=int, default=2, help="how often both take their turn; the best rate counts")
    given = parser.parse_args()
    best: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for dtype in FORMATS:
                measured = _measure(dtype, Path(folder) / f"{dtype}-{number}.log", given.tokens)
                before = best.setdefault(dtype, measured)
                before.rates = {streams: max(rate, before.rates[streams]) for streams, rate in measured.rates.items()}
    Console(width=100).print(_table(best))


def _measure(dtype: str, log: Path, tokens: int) -> Measured:
    overrides = (f"models.smollm2.engine.dtype={dtype}", "models.smollm2.engine.kv_cache_memory_bytes=1073741824")
    server = ServerProcess(EXAMPLE, log, *overrides).wait_until_ready()
    try:
        found = perplexity(_logprobs(server, TEXT.read_text()))
        _rate(server, 1, 8)  # warms up
        return Measured(found, {streams: _rate(server, streams, tokens) for streams in STREAMS})
    finally:
        server.stop()


def perplexity(logprobs: Sequence[float]) -> float:
    """The perplexity of a text from the log probabilities of its tokens."""
    return math.exp(-sum(logprobs) / len(logprobs))


def _logprobs(server: ServerProcess, text: str) -> list[float]:
    """The log probability of each token of a text but the first, which has nothing before it."""
    body = {"model": "smollm2", "prompt": text, "max_tokens": 1, "prompt_logprobs": 0}
    answer = _answer(server, body)
    return [next(iter(each.values()))["logprob"] for each in answer["choices"][0]["prompt_logprobs"][1:]]


def _rate(server: ServerProcess, streams: int, tokens: int) -> float:
    """Tokens a second of so many answers at once."""
    body = {"model": "smollm2", "prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as threads:
        list(threads.map(lambda _: _answer(server, body), range(streams)))
    return streams * tokens / (time.perf_counter() - began)


def _answer(server: ServerProcess, body: object) -> Any:  # Any: a JSON object
    status, answer = server.post("/v1/completions", body)
    if status != 200:
        raise SystemExit(f"a request failed with status {status}: {json.dumps(answer)}")
    return answer


def _table(best: dict[str, Measured]) -> Table:
    table = Table("format", "perplexity", *(f"tokens/s, streams: {streams}" for streams in STREAMS))
    for dtype, measured in best.items():
        rates = (f"{measured.rates[streams]:.0f}" for streams in STREAMS)
        table.add_row(dtype, f"{measured.perplexity:.3f}", *rates)
    return table


if __name__ == "__main__":
    main()
