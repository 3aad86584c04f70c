"""How long it takes from the command to the first token: ours beside vLLM's own server, on this machine in this run.

``just bench start`` prints a table of medians. ``warm`` has all files in the page cache; ``cold`` has none of the
environment's and the model's; ``first`` is the first start of a machine: nothing that vLLM or we keep from start to
start is there. The contenders take turns, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from server_process import free_port

from appliance.config import load
from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import ModelFactory
from bench.arrivals import closed

CONDITIONS = ("warm", "cold", "first")

_CHAT = Path(__file__).parents[2] / "examples" / "chat.yaml"
_MODEL = "smollm2"
_LENGTH = 2048

# Of each answer that counts for tokens a second.
_TOKENS = 128

# How long any of them may take.
_SECONDS = 300.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Server:
    """
    One contender: its command, given the model, a port and a folder of its own, and where it says that it is ready.
    """

    name: str
    command: Callable[[Path, int], Sequence[str]]
    ready: str
    environment: Callable[[Path], Mapping[str, str]]
    """What makes a start the first one, given an empty folder."""


def _ours(model: Path, port: int) -> Sequence[str]:
    changes = {"server.port": port, "server.host": "127.0.0.1", "models.smollm2.storage.uri": model}
    # That of vLLM's own server.
    changes["models.smollm2.engine.dtype"] = "bfloat16"
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "appliance", "serve", str(_CHAT), *words]


def _vllm(*more: str) -> Callable[[Path, int], Sequence[str]]:
    def command(model: Path, port: int) -> Sequence[str]:
        words = {"--model": model, "--served-model-name": _MODEL, "--max-model-len": _LENGTH, "--port": port}
        said = [str(word) for pair in words.items() for word in pair]
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", *said, *more]

    return command


SERVERS = (
    Server("appliance", _ours, "/readyz", lambda empty: {"APPLIANCE__STORAGE__CACHE_DIR": str(empty)}),
    Server(
        "vLLM", _vllm(), "/health", lambda empty: {"VLLM_CACHE_ROOT": str(empty), "TORCHINDUCTOR_CACHE_DIR": str(empty)}
    ),
    Server("vLLM, eager", _vllm("--enforce-eager"), "/health", lambda empty: {"VLLM_CACHE_ROOT": str(empty)}),
)

# The same memory for its cache that ours takes; without it, it takes most of the machine's.
_VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(slots=True)
class Start:
    """Seconds from the command to the open port, to ready, and to the first token; then tokens a second."""

    port: float
    ready: float
    first_token: float
    rates: Mapping[int, float] = field(default_factory=dict)


def start(server: Server, model: Path, condition: str, streams: Sequence[int]) -> Start:
    """Start one, take the times, load it with so many streams at once, and end it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **_VLLM_ENVIRONMENT}
        if condition == "first":
            environment |= server.environment(Path(folder) / "kept")
        if condition == "cold":
            _forget(Path(sys.prefix), model, _CHAT.parents[1] / "appliance")
        with _running(server.command(model, port), environment, Path(folder) / "log") as (began, has_exited):
            opened = _until(lambda: _listens(port), has_exited) - began
            ready = _until(lambda: _is_good(port, server.ready), has_exited) - began
            _first_token(port)
            answered = time.monotonic() - began
            return Start(opened, ready, answered, {count: _rate(port, count) for count in streams})


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[tuple[float, Callable[[], str | None]]]:
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield began, lambda: None if process.poll() is None else log.read_text()[-2000:]
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
        process.kill()
        process.wait()


def _until(is_so: Callable[[], bool], has_exited: Callable[[], str | None]) -> float:
    """The moment from which on it is so."""
    ends = time.monotonic() + _SECONDS
    while not is_so():
        last_words = has_exited()
        if last_words is not None or time.monotonic() > ends:
            raise SystemExit(f"it never became ready\n{last_words}")
        time.sleep(_POLL_SECONDS)
    return time.monotonic()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _is_good(port: int, path: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def _first_token(port: int) -> None:
    body = {"model": _MODEL, "prompt": "The capital of France is", "max_tokens": 1, "stream": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        assert answer.readline().startswith(b"data: {")


def _rate(port: int, streams: int) -> float:
    """Tokens a second of so many answers at once, after a few that warm up."""
    asyncio.run(closed(port, _MODEL, 2, 0.01, 8))
    answers = asyncio.run(closed(port, _MODEL, streams, 0.01, _TOKENS))
    assert all(answer.status == 200 for answer in answers)
    ends = max(answer.began + answer.last for answer in answers)
    return _TOKENS * len(answers) / (ends - min(answer.began for answer in answers))


def _forget(*places: Path) -> None:
    """Have the kernel drop what it caches of all files below; it keeps what another process has mapped."""
    os.sync()
    for path in (path for place in places for path in place.rglob("*")):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def measure(given: argparse.Namespace, say: Callable[[str], None]) -> None:
    """All contenders by turns in each condition, then a table of medians."""
    config = load(_CHAT).config.models[0]
    model = ModelFactory().materialize(config, GlobalStorageConfig(), lambda *_: None)["model"]
    say(f"{os.cpu_count()} cores; SmolLM2-135M, texts of {_LENGTH} tokens; medians of {given.rounds}\n\n{_head(given)}")
    for condition in given.conditions:
        starts: dict[str, list[Start]] = {server.name: [] for server in SERVERS}
        for turn in range(given.rounds):
            # Each is the first one now and then.
            for server in (*SERVERS[turn % len(SERVERS) :], *SERVERS[: turn % len(SERVERS)]):
                starts[server.name].append(start(server, model, condition, given.streams))
                # It takes minutes, and the table comes at the end.
                print(server.name, condition, starts[server.name][-1], file=sys.stderr)
        for name, measured in starts.items():
            say(_row(name, condition, measured, starts[SERVERS[0].name], given.streams))


def _head(given: argparse.Namespace) -> str:
    names = ["server", "files", "port s", "ready s", "first token s", "times ours"]
    names += [f"tokens/s, {count} at once" for count in given.streams]
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def _row(name: str, condition: str, starts: Sequence[Start], ours: Sequence[Start], streams: Sequence[int]) -> str:
    first = median(each.first_token for each in starts)
    cells = [
        name,
        condition,
        f"{median(each.port for each in starts):.1f}",
        f"{median(each.ready for each in starts):.1f}",
        f"{first:.1f}",
        f"{first / median(each.first_token for each in ours):.2f}",
        *(f"{median(each.rates[count] for each in starts):.0f}" for count in streams),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--streams", type=int, nargs="*", default=[32], help="also tokens a second of so many at once")
    measure(parser.parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
