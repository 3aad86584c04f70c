"""What a proxy adds: ours beside others, over an upstream that is never the bottleneck, on this machine in this run.

``just bench proxy`` prints a table, the medians of alternating runs, and writes the page in ``docs/bench``. The load
generator is our own (`load.py`), the same for all. A proxy has one core, the upstream and the clients the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from bench.answering import until_answering

CONCURRENCIES = (1, 16, 128)
STREAMS = 200

# The load of which the processor time of a request is shown.
_PROCESSOR_AT = 16

_CORES = sorted(os.sched_getaffinity(0))
_OTHER_CORES = _CORES[1:] or _CORES

_PAGE = Path(__file__).parents[2] / "docs/bench/proxy.md"

_HEAD = """\
# Proxy

What a proxy adds to a request: Appliance, [LiteLLM](https://github.com/BerriAI/litellm) and
[vLLM's router](https://github.com/vllm-project/router), which is written in Rust and passes requests on as they are,
in front of an upstream that answers at once. `just bench proxy --pairs 3` generates this page: the median of {pairs}
alternating runs. Each proxy has one core, except where its name says so; the upstream and the clients have another one.

Appliance is interpreted, and no part of it dominates. A sampling profiler at 16 connections shows, of the processor
time of a request: Granian's threads 19 % and its calls from Python 9 %; choosing the upstream, the request to it and
its response 15 %, and aiohttp's connections and parser 10 %; the access log and metrics 13 %; reading the body and
making the response 9 %; queue, limits and timeouts 8 %; authentication, headers and protection from other sites 8 %;
the event loop 6 %; Litestar's routing 3 %. `logging: {{access: {{sample: 0}}}}` leaves out the lines of requests that
succeed.

"""

# What each stream of the upstream has, and when: together they offer 20,000 events a second.
EVENTS = 100
TICK_SECONDS = 0.01

CLIENT_MODEL = "bench"
UPSTREAM_MODEL = "null-1"

# The others, each in an environment of its own: what they want would not go together with what we want.
LITELLM = "litellm[proxy]==1.106.2"
ROUTER = "vllm-router==0.1.17"

# How long a proxy may take to answer, and to answer all that memory is measured by.
START_SECONDS = 120.0
MEMORY_SECONDS = 120.0

Measured = Mapping[str, float]
Command = Callable[[int, int, Path], Sequence[str]]
"""What starts a proxy, given its port, that of its upstream, and a folder."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to measure; without a command it is the upstream itself."""

    name: str
    command: Command | None
    model: str = CLIENT_MODEL
    has_one_core: bool = True


@dataclass(slots=True)
class Result:
    """What one subject did: at each concurrency, with streams, and its resident bytes after so many requests."""

    name: str
    start_seconds: float = 0.0
    chats: dict[int, Measured] = field(default_factory=dict)
    streams: Measured = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def median_of(cls, runs: Sequence[Result]) -> Result:
        """The median of each figure; memory is that of the first run, because later ones are alike."""
        return cls(
            runs[0].name,
            median(run.start_seconds for run in runs),
            {each: _medians([run.chats[each] for run in runs]) for each in runs[0].chats},
            _medians([run.streams for run in runs]),
            runs[0].sizes,
        )


def appliance(workers: str) -> Command:
    """This checkout's proxy."""

    def command(port: int, upstream: int, folder: Path) -> Sequence[str]:
        file = folder / "proxy.yaml"
        file.write_text(
            f"models:\n- name: {CLIENT_MODEL}\n  class: proxy\n  upstreams:\n"
            f"  - {{url: 'http://127.0.0.1:{upstream}/v1', model: {UPSTREAM_MODEL}}}\n"
            f"server: {{host: 127.0.0.1, port: {port}, workers: {workers}}}\n"
        )
        return [sys.executable, "-m", "appliance", "serve", str(file)]

    return command


def litellm(port: int, upstream: int, folder: Path) -> Sequence[str]:
    """LiteLLM's proxy, with one worker."""
    file = folder / "litellm.yaml"
    file.write_text(
        f"model_list:\n- model_name: {CLIENT_MODEL}\n  litellm_params:\n    model: openai/{UPSTREAM_MODEL}\n"
        f"    api_base: http://127.0.0.1:{upstream}/v1\n    api_key: none\n"
        "general_settings: {dangerously_permit_weak_or_unset_master_key: true}\n"
    )
    words = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [str(environment_with(LITELLM) / "litellm"), *words, "--telemetry", "False"]


def router(port: int, upstream: int, folder: Path) -> Sequence[str]:
    """vLLM's router, which is compiled, balances, and changes no name."""
    words = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(_free_port())]
    return [
        str(environment_with(ROUTER) / "vllm-router"),
        *words,
        *("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"),
    ]


SUBJECTS = {
    "direct": Subject("no proxy", None, UPSTREAM_MODEL),
    "appliance": Subject("appliance", appliance("1")),
    "workers": Subject("appliance, workers: auto", appliance("auto"), has_one_core=False),
    "litellm": Subject("LiteLLM", litellm),
    "router": Subject("vllm-router", router, UPSTREAM_MODEL),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="how long each load lasts")
    parser.add_argument("--requests", type=int, default=100_000, help="requests after which memory is read again")
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="what to measure")
    parser.add_argument("--pairs", type=int, default=1, help="how often each is started")
    parser.add_argument("--page", type=Path, help=f"where the table goes too; {_PAGE} if everything is measured")
    given = parser.parse_args()
    runs: dict[str, list[Result]] = {key: [] for key in ["direct", *given.only]}
    with _null_upstream() as upstream:
        for number in range(given.pairs):
            for key in runs:
                _say(f"measuring {SUBJECTS[key].name}")
                # Memory is read once.
                requests = 0 if number else given.requests
                try:
                    runs[key].append(_measure(SUBJECTS[key], upstream, given.seconds, requests))
                except (OSError, subprocess.SubprocessError) as error:
                    _say(f"  left out: {error}")
    table = _table([Result.median_of(each) for each in runs.values() if each])
    _say(f"\n{table}")
    page = given.page or (_PAGE if runs.keys() == SUBJECTS.keys() else None)
    if page is not None:
        page.write_text(_HEAD.format(pairs=given.pairs) + table)


def _measure(subject: Subject, upstream: int, seconds: float, requests: int) -> Result:
    result = Result(subject.name)
    with _started(subject, upstream, result) as (port, process):
        to = ["--port", str(port), "--model", subject.model]
        _load(*to, "--connections", "8", "--requests", "400")
        for connections in CONCURRENCIES:
            began = _processor_seconds(process)
            measured = _load(*to, "--connections", str(connections), "--seconds", str(seconds))
            spent = (_processor_seconds(process) - began) * 1e6 / max(measured["requests"], 1)
            result.chats[connections] = {**measured, "processor_us": spent}
            _say(f"  {connections} connections: p50 {measured['p50']:.2f} ms, {measured['rate']:.0f} requests a second")
        result.streams = _load(*to, "--stream", "--connections", str(STREAMS), "--seconds", str(seconds))
        _say(f"  {STREAMS} streams: {result.streams['event_rate']:.0f} events a second")
        if process is not None and requests:
            for goal in (requests // 10, requests):
                _memory(result, process, to, goal)
    return result


def _memory(result: Result, process: psutil.Process, to: Sequence[str], goal: int) -> None:
    """Resident bytes of all its processes after so many requests, or as many as there is time for."""
    done = result.sizes[-1][0] if result.sizes else 0
    limits = ["--requests", str(goal - done), "--seconds", str(MEMORY_SECONDS)]
    done += int(_load(*to, "--connections", "16", *limits)["requests"])
    time.sleep(1)
    family = [process, *process.children(recursive=True)]
    result.sizes.append((done, sum(each.memory_info().rss for each in family)))
    _say(f"  {result.sizes[-1][1] / 1e6:.0f} MB after {done} requests")


def _processor_seconds(process: psutil.Process | None) -> float:
    family = [] if process is None else [process, *process.children(recursive=True)]
    return sum(sum(each.cpu_times()[:2]) for each in family)


def _medians(runs: Sequence[Measured]) -> Measured:
    return {name: median(run[name] for run in runs) for name in runs[0]}


def _on(cores: Collection[int], command: Sequence[str]) -> Sequence[str]:
    return ["taskset", "-c", ",".join(map(str, cores)), *command]


def _load(*words: str) -> Measured:
    command = _on(_OTHER_CORES, [sys.executable, "-m", "bench.load", *words])
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    measured: Measured = json.loads(done.stdout)
    return measured


@contextlib.contextmanager
def _started(subject: Subject, upstream: int, result: Result) -> Iterator[tuple[int, psutil.Process | None]]:
    if subject.command is None:
        yield upstream, None
        return
    port = _free_port()
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        command = _on(_CORES[:1] if subject.has_one_core else _CORES, subject.command(port, upstream, Path(name)))
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                # Or LiteLLM waits at its start for a list of prices from the network.
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            )
        try:
            until_answering(port, subject.model, process, log, START_SECONDS)
            result.start_seconds = time.monotonic() - began
            yield port, psutil.Process(process.pid)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    process.kill()
    process.wait()


@contextlib.contextmanager
def _null_upstream() -> Iterator[int]:
    words = ["--model", UPSTREAM_MODEL, "--events", str(EVENTS), "--tick", str(TICK_SECONDS)]
    command = _on(_OTHER_CORES, [sys.executable, "-m", "bench.null_upstream", *words])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def environment_with(requirement: str) -> Path:
    """The commands of a virtual environment with one requirement in it, made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "appliance-bench"
    folder = cache / requirement.replace("[", "-").replace("]", "")
    if not (folder / "made").exists():
        _say(f"  installing {requirement}")
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        python = str(folder / "bin/python")
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, requirement], check=True)
        (folder / "made").touch()
    return folder / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _table(results: Sequence[Result]) -> str:
    """A row for each subject; added is what is over the same load without a proxy."""
    chats = [title for each in CONCURRENCIES for title in (f"+p50/p99 ms @{each}", f"req/s @{each}")]
    head = [
        "",
        "start s",
        *chats,
        f"processor µs @{_PROCESSOR_AT}",
        f"events/s @{STREAMS}",
        "MB after requests",
        "faults",
    ]
    rows = [head, *(_row(result, results[0]) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    offered = STREAMS / TICK_SECONDS
    legend = f"+ is over no proxy at the same load; streams are offered {offered:.0f} events/s; {len(_CORES)} cores"
    return "\n".join([*lines, "", legend, ""])


def _row(result: Result, direct: Result) -> list[str]:
    cells = [result.name, f"{result.start_seconds:.1f}" if result.start_seconds else ""]
    for connections, measured in result.chats.items():
        base: Measured = {} if result is direct else direct.chats[connections]
        added = [measured[share] - base.get(share, 0) for share in ("p50", "p99")]
        cells += [" / ".join(f"{each:.2f}" for each in added), f"{measured['rate']:.0f}"]
    cells.append(f"{result.chats[_PROCESSOR_AT]['processor_us']:.0f}" if result is not direct else "")
    cells.append(f"{result.streams['event_rate']:.0f}")
    cells.append(", ".join(f"{size / 1e6:.0f} @{count}" for count, size in result.sizes))
    faults = sum(measured["faults"] for measured in (*result.chats.values(), result.streams))
    return [*cells, f"{faults:.0f}"]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
