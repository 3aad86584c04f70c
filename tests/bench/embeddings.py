"""Texts embedded a second: ours through HTTP, vLLM's own server through HTTP, sentence-transformers in process.

``just bench embeddings`` prints a table; each has the machine to itself while it is measured, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from appliance.config import load as read
from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import ModelFactory
from bench.load import load

EXAMPLE = Path(__file__).parents[2] / "examples/embeddings.yaml"

BATCHES = (1, 8, 64)
CONCURRENCIES = (1, 16)
START_SECONDS = 240.0

OURS, THEIRS, IN_PROCESS = "appliance", "vLLM's own server", "sentence-transformers, in process"

Point = tuple[int, int]
"""A batch size and a concurrency."""

_TEXT = "the quick brown fox jumps over a lazy dog while wizards quietly brew potent coffee near old stone bridges"


def texts(count: int) -> list[str]:
    """Made-up texts of 8 to 40 words, the same ones every time."""
    dice, words = random.Random(0), _TEXT.split()
    return [" ".join(dice.choices(words, k=dice.randint(8, 40))) for _ in range(count)]


def main() -> None:
    """Measure all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each point is measured")
    parser.add_argument("--rounds", type=int, default=2, help="how often all take their turn; the best counts")
    parser.add_argument("--in-process", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.in_process:
        sys.stdout.write(json.dumps(_in_process(given.in_process, given.seconds)))
        return
    (config,) = read(EXAMPLE).config.models
    model = ModelFactory().materialize(config, GlobalStorageConfig(), lambda *_: None)["model"]
    best: dict[str, dict[Point, float]] = {OURS: {}, THEIRS: {}, IN_PROCESS: {}}
    for _ in range(given.rounds):
        for name, rates in (
            (OURS, _served(_ours, model, given.seconds)),
            (THEIRS, _served(_theirs, model, given.seconds)),
            (IN_PROCESS, _alone(model, given.seconds)),
        ):
            for point, rate in rates.items():
                best[name][point] = max(rate, best[name].get(point, 0.0))
    Console().print(_table(best))


def _table(best: Mapping[str, Mapping[Point, float]]) -> Table:
    table = Table("batch", "concurrency", *(f"{name}\ntexts/s" for name in best), "to vLLM's", "to in process")
    for point, rate in best[OURS].items():
        # In process there is one caller; more of them would share the same two cores.
        alone = best[IN_PROCESS][point[0], 1]
        theirs = best[THEIRS][point]
        rates = [f"{rate:.0f}", f"{theirs:.0f}", f"{alone:.0f}"]
        table.add_row(*map(str, point), *rates, f"{rate / theirs:.2f}", f"{rate / alone:.2f}")
    return table


Command = Callable[[Path, int], Sequence[str]]
"""Arguments for Python that serve the model of a directory on a port."""


def _ours(_: Path, port: int) -> Sequence[str]:
    changes = [f"server.port={port}", "server.host=127.0.0.1", "logging.level=warning"]
    return ["-m", "appliance", "serve", str(EXAMPLE), *(word for each in changes for word in ("--set", each))]


def _theirs(model: Path, port: int) -> Sequence[str]:
    # The engine's settings are ours: float32 and no compilation.
    words = f"--model {model} --served-model-name minilm --port {port} --host 127.0.0.1 --runner pooling"
    options = "--dtype float32 --enforce-eager --disable-uvicorn-access-log --kv-cache-memory-bytes 1000000000"
    return ["-m", "vllm.entrypoints.openai.api_server", *words.split(), *options.split()]


def _served(command: Command, model: Path, seconds: float) -> dict[Point, float]:
    port = 18_000 + os.getpid() % 1000
    with _running(command(model, port), port):
        return {
            (batch, concurrency): _rate(port, batch, concurrency, seconds)
            for batch in BATCHES
            for concurrency in CONCURRENCIES
        }


def _rate(port: int, batch: int, concurrency: int, seconds: float) -> float:
    """Texts a second, after a second of warming up."""
    # What the official clients ask for.
    body = json.dumps({"model": "minilm", "input": texts(batch), "encoding_format": "base64"}).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    request = head.encode() + b"\r\n\r\n" + body
    uvloop.run(load(port, request, concurrency, 10**9, 1.0))
    measured = uvloop.run(load(port, request, concurrency, 10**9, seconds))
    if measured["faults"]:
        raise SystemExit(f"{measured['faults']} requests failed at batch {batch}, concurrency {concurrency}")
    return measured["rate"] * batch


@contextmanager
def _running(words: Sequence[str], port: int) -> Iterator[None]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=environment)
        try:
            _until_ready(process, port)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("a server did not get ready")


def _alone(model: Path, seconds: float) -> dict[Point, float]:
    """In a process of its own, so that nothing of this one is in its way."""
    words = ["-m", "bench.embeddings", "--in-process", str(model), "--seconds", str(seconds)]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return {(int(batch), 1): rate for batch, rate in json.loads(done.stdout).items()}


def _in_process(model: Path, seconds: float) -> dict[int, float]:
    from sentence_transformers import SentenceTransformer

    transformer = SentenceTransformer(str(model), device="cpu")
    rates = {}
    for batch in BATCHES:
        given, count = texts(batch), 0
        transformer.encode(given, batch_size=64, show_progress_bar=False)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            transformer.encode(given, batch_size=64, show_progress_bar=False)
            count += batch
        rates[batch] = count / (time.perf_counter() - began)
    return rates


if __name__ == "__main__":
    main()
