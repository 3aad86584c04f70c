"""What a batch costs interactive requests: a real server, a real engine, an open loop of streams beside 10,000 lines.

With ``--simulated`` the engine only takes the time of one (`step_engine.py`), so that the machine does not matter.
``just bench batch`` measures the capacity first. Then it offers a share of it, alternately without and with a batch, at
the same moments, and prints for each share the time to first token of both, and what the batch got meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
from server_process import ServerProcess

from bench.arrivals import Answer, body
from bench.overload import answers_of, percentile, start_load

_CHAT = Path(__file__).parents[2] / "examples" / "chat.yaml"
_SIMULATED = "models: [{name: smollm2, class: generative, engine: {python: 'bench.step_engine:StepEngine'}}]"
_ENDPOINT = "/v1/chat/completions"

_HEAD = (
    "| share of capacity | requests | TTFT p50 alone / beside ms | TTFT p95 alone / beside ms | p95 beside / alone "
    "| lines/s beside |\n" + "|---" * 6 + "|"
)


@dataclass(slots=True)
class Share:
    """What was seen while a share of the capacity was offered, without a batch and beside one."""

    share: float
    alone: list[Answer] = field(default_factory=list)
    beside: list[Answer] = field(default_factory=list)
    lines: int = 0
    seconds: float = 0.0

    def row(self) -> str:
        """A line of the table."""
        firsts = [[each.first * 1000 for each in answers] for answers in (self.alone, self.beside)]
        p50, p95 = ([percentile(each, percent) for each in firsts] for percent in (50, 95))
        cells = [
            f"{self.share:.0%}",
            str(len(self.beside)),
            " / ".join(f"{each:.0f}" for each in p50),
            " / ".join(f"{each:.0f}" for each in p95),
            f"{p95[1] / p95[0]:.3f}",
            f"{self.lines / self.seconds:.2f}",
        ]
        return f"| {' | '.join(cells)} |"


class Batches:
    """The batches of a server, one after another."""

    def __init__(self, server: ServerProcess, given: argparse.Namespace) -> None:
        self._client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        self._lines, self._tokens = given.lines, given.tokens

    @contextmanager
    def running(self) -> Iterator[Callable[[], int]]:
        """Run a batch during the block; yields what counts its finished lines."""
        file = self._client.files.create(file=("lines.jsonl", self._input()), purpose="batch")
        batch = self._client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        def finished() -> int:
            counts = self._client.batches.retrieve(batch.id).request_counts
            return 0 if counts is None else counts.completed

        try:
            self._wait(batch.id, "in_progress")
            yield finished
        finally:
            self._client.batches.cancel(batch.id)
            self._wait(batch.id, "cancelled")
            self._client.files.delete(file.id)

    def _wait(self, batch_id: str, status: str) -> None:
        while (now := self._client.batches.retrieve(batch_id)).status != status:
            if now.status in {"failed", "completed"}:
                raise RuntimeError(f"the batch is {now.status}: {now.errors}")
            time.sleep(0.1)

    def _input(self) -> bytes:
        lines = []
        for number in range(self._lines):
            # The prompts differ from each other and from those of interactive requests.
            sent = {**body("smollm2", self._tokens, stream=False), "seed": number}
            lines.append(json.dumps({"custom_id": str(number), "url": _ENDPOINT, "body": sent}))
        return "\n".join(lines).encode()


def measure(given: argparse.Namespace, say: Callable[[str], None]) -> None:
    """The capacity, the batch by itself, then a row for each share."""
    with tempfile.TemporaryDirectory() as folder:
        log, directory = Path(folder) / "server.log", f"batches.directory={folder}/batches"
        file, tests = given.file, Path(__file__).parents[1]
        if given.simulated:
            file = Path(folder) / "config.yaml"
            file.write_text(_SIMULATED)
        variables = {"PYTHONPATH": str(tests)}
        served = ServerProcess(file, log, directory, *given.set, variables=variables).wait_until_ready()
        try:
            batches = Batches(served, given)
            capacity = _capacity(served.port, given)
            with batches.running() as finished:
                time.sleep(given.seconds)
                rate = finished() / given.seconds
            say(
                f"{os.cpu_count()} cores; answers of {given.tokens} tokens; capacity {capacity:.2f} requests/s; "
                f"a batch by itself {rate:.2f} lines/s\n\n{_HEAD}"
            )
            for share in given.shares:
                say(_share(served.port, batches, share, capacity, given).row())
        finally:
            served.stop()


def _capacity(port: int, given: argparse.Namespace) -> float:
    """Requests a second of eight clients, after a warm-up."""
    for seconds in (given.seconds / 4, given.seconds):
        words = ["--connections", "8", "--tokens", str(given.tokens), "--seconds", str(seconds)]
        answers = answers_of(start_load("closed", port, words))
    ends = max(answer.began + answer.last for answer in answers)
    return len(answers) / (ends - min(answer.began for answer in answers))


def _share(port: int, batches: Batches, share: float, capacity: float, given: argparse.Namespace) -> Share:
    seen = Share(share)
    for turn in range(given.turns):
        words = ["--rate", str(share * capacity), "--seconds", str(given.seconds), "--tokens", str(given.tokens)]
        words += ["--seed", str(turn)]
        # Each is first as often as the other, so that a machine that gets slower or faster is no one's advantage.
        for is_beside in random.Random(turn).sample([False, True], 2):
            if not is_beside:
                seen.alone += _load(port, words)
                continue
            with batches.running() as finished:
                time.sleep(1)
                before, began = finished(), time.monotonic()
                seen.beside += _load(port, words)
                seen.lines += finished() - before
                seen.seconds += time.monotonic() - began
    return seen


def _load(port: int, words: Sequence[str]) -> list[Answer]:
    answers = answers_of(start_load("load", port, words))
    if failed := [answer.status for answer in answers if answer.status != 200]:
        raise RuntimeError(f"{len(failed)} interactive requests failed with {failed[0]}")
    return answers


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=_CHAT, help="a config whose model is called smollm2")
    parser.add_argument("--simulated", action="store_true", help="an engine that computes nothing")
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    parser.add_argument("--set", action="append", default=[])
    measure(parser.parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
