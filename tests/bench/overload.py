"""What becomes of requests when more come than the model can answer: a real server, a real engine, an open loop.

``just bench overload`` measures the capacity first, then offers 1.5, 3 and 10 times as much, and prints a table: of the
accepted requests the time to first token against the promised one, of the refused ones how soon they were told, and
meanwhile how the probes answered. The load generator is another process that gives way to the server.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from server_process import ServerProcess

from bench.arrivals import PROBES, Answer

FACTORS = (1.5, 3.0, 10.0)

_CHAT = Path(__file__).parents[2] / "examples" / "chat.yaml"

# The generator must not take the server's processor; the probes must not wait for the generator's.
_NICE = 10


@dataclass(slots=True)
class Phase:
    """What was seen while so many times the capacity was offered."""

    factor: float
    answers: list[Answer] = field(default_factory=list)
    probes: list[Answer] = field(default_factory=list)

    @property
    def accepted(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def refused(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 429]

    @property
    def others(self) -> int:
        return len(self.answers) - len(self.accepted) - len(self.refused)

    def row(self, slo: float) -> str:
        """A line of the table."""
        firsts = [answer.first for answer in self.accepted]
        kept = sum(first <= slo * 1.1 for first in firsts) / max(len(firsts), 1)
        cells = [
            f"{self.factor:g}",
            str(len(self.answers)),
            str(len(self.accepted)),
            str(len(self.refused)),
            str(self.others),
            " / ".join(f"{percentile(firsts, share):.2f}" for share in (50, 95, 99)),
            f"{kept:.1%}",
            " / ".join(f"{percentile([each.last for each in self.refused], share) * 1000:.0f}" for share in (50, 99)),
            *(self._probe(path) for path in PROBES),
            str(sum(probe.path == "/livez" and probe.status != 200 for probe in self.probes)),
        ]
        return f"| {' | '.join(cells)} |"

    def _probe(self, path: str) -> str:
        taken = [probe.last for probe in self.probes if probe.path == path]
        return " / ".join(f"{percentile(taken, share) * 1000:.0f}" for share in (50, 99, 100))


_HEAD = (
    "| times capacity | offered | accepted | refused | others | TTFT p50 / p95 / p99 s | within SLO + 10 % "
    "| refusal p50 / p99 ms | livez p50 / p99 / max ms | readyz | metrics | liveness lost |\n" + "|---" * 12 + "|"
)


def measure(given: argparse.Namespace, say: Callable[[str], None]) -> None:
    """The capacity, then a row for each factor."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"models.smollm2.limits.concurrent={given.concurrent}", f"models.smollm2.slo.ttft_seconds={given.slo}"]
        served = ServerProcess(given.file, Path(folder) / "server.log", *words, *given.set).wait_until_ready()
        try:
            capacity = _capacity(served.port, given)
            say(
                f"{os.cpu_count()} cores; {given.concurrent} at once, answers of {given.tokens} tokens; "
                f"capacity {capacity:.2f} requests/s; slo.ttft_seconds {given.slo:g}\n\n{_HEAD}"
            )
            for factor in given.factors:
                say(_phase(served.port, factor, capacity, given).row(given.slo))
        finally:
            served.stop()


def _capacity(port: int, given: argparse.Namespace) -> float:
    """Requests a second with all places taken; the first ones of it warm up."""
    words = ["--connections", str(given.concurrent), "--tokens", str(given.tokens)]
    for seconds in (given.seconds / 4, given.seconds):
        answers = answers_of(start_load("closed", port, [*words, "--seconds", str(seconds)]))
    good = [answer for answer in answers if answer.status == 200]
    ends = max(answer.began + answer.last for answer in answers)
    return len(good) / (ends - min(answer.began for answer in answers))


def _phase(port: int, factor: float, capacity: float, given: argparse.Namespace) -> Phase:
    seconds = str(given.seconds)
    words = ["--rate", str(factor * capacity), "--seconds", seconds, "--tokens", str(given.tokens)]
    load = start_load("load", port, words)
    probes = start_load("probes", port, ["--seconds", seconds], nice=0)
    return Phase(factor, answers_of(load), answers_of(probes))


def start_load(
    what: str, port: int, words: Sequence[str], nice: int = _NICE
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    command = ["nice", "-n", str(nice), sys.executable, "-m", "bench.arrivals", what]
    command += ["--port", str(port), "--model", "smollm2", *words]
    # A file: a pipe that nobody reads yet would hold it up.
    output = tempfile.TemporaryFile()  # noqa: SIM115 - whoever reads it closes it
    return subprocess.Popen(command, stdout=output), output


def answers_of(started: tuple[subprocess.Popen[bytes], IO[bytes]]) -> list[Answer]:
    process, output = started
    process.wait()
    with output:
        output.seek(0)
        return [Answer(**answer) for answer in json.load(output)]


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(percent * len(ordered) // 100, len(ordered) - 1)] if ordered else 0.0


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=_CHAT, help="a config whose model is called smollm2")
    parser.add_argument("--concurrent", type=int, default=8)
    parser.add_argument("--slo", type=float, default=2.0)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS)
    parser.add_argument("--set", action="append", default=[])
    measure(parser.parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
