"""Embeddings on a CPU: ours and vLLM's own server through HTTP, torch and ONNX Runtime in process.

``just bench embeddings`` prints texts per second, CPU seconds per 1,000 texts, and the cosine with float32 in torch.
The contenders take turns; a figure is the median of its turns. ``--page`` writes ``docs/bench/embeddings.md``.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import uvloop
from onnx_export import export
from server_process import free_port

from appliance.config import load as read
from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import ModelFactory
from bench.load import load
from bench.proxy import environment_with

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/embeddings.yaml"
PAGE = ROOT / "docs/bench/embeddings.md"

TOKENS, BATCHES = (16, 256), (1, 32)
VARIED = 300
START_SECONDS = 600.0

# Each is one token of BERT's vocabulary.
_WORDS = [
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "quietly", "brew"),
    *("potent", "coffee", "near", "old", "stone", "bridges"),
]


@dataclass(frozen=True, slots=True)
class Point:
    """Texts of so many tokens, so many in a request, from so many clients at once."""

    tokens: int
    batch: int
    clients: int = 1

    def texts(self) -> list[str]:
        """Return the texts of one request, the same ones every time; two tokens are special."""
        dice = random.Random(0)
        return [" ".join(dice.choices(_WORDS, k=self.tokens - 2)) for _ in range(self.batch)]


POINTS = [
    *(Point(tokens, batch) for tokens in TOKENS for batch in BATCHES),
    *(Point(tokens, 1, clients=16) for tokens in TOKENS),
]

Measured = tuple[Mapping[Point, tuple[float, float]], Sequence[Sequence[float]]]
"""Texts a second and CPU seconds per text at each point, and the vectors of the varied texts."""

Turn = Callable[[Path, Path, Sequence[Point], float], Measured]
"""Measures, given the model in torch's format and in ONNX's, the points, and the seconds of each."""


@dataclass(frozen=True, slots=True)
class Contender:
    """What embeds, and one turn of it."""

    name: str
    turn: Turn


@cache
def varied_texts() -> list[str]:
    """Paragraphs, table rows and list items of this project's docs, of 8 to 150 words; the docs may be edited."""
    docs = ROOT / "docs"
    every = sorted(path.relative_to(docs) for path in docs.rglob("*.md"))
    files = [path for path in every if not {"reference", "bench"} & {*path.parts}]
    parts = [" ".join(line.split()[:150]) for file in files for line in (docs / file).read_text().splitlines()]
    return random.Random(0).sample([part for part in parts if len(part.split()) >= 8], VARIED)


def main() -> None:
    """Measure all, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each point is measured")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--page", action="store_true", help="write docs/bench/embeddings.md")
    parser.add_argument("--only", nargs="*", help="contenders whose names contain one of these words")
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES, help="texts in a request")
    given = parser.parse_args()
    points = [point for point in POINTS if point.batch in given.batches]
    (config,) = read(EXAMPLE).config.models
    torch_model = ModelFactory().materialize(config, GlobalStorageConfig(), lambda *_: None)["model"]
    began = time.monotonic()
    chosen = [each for each in CONTENDERS if not given.only or any(word in each.name for word in given.only)]
    turns: dict[str, list[Measured]] = {each.name: [] for each in chosen}
    with tempfile.TemporaryDirectory() as folder:
        onnx_model = export(torch_model, Path(folder) / "model", has_int8=True)
        for _ in range(given.rounds):
            for each in chosen:
                sys.stderr.write(f"{time.monotonic() - began:4.0f} s  {each.name}\n")
                turns[each.name].append(each.turn(torch_model, onnx_model, points, given.seconds))
    text = _report(turns, given.rounds)
    sys.stdout.write(text)
    if given.page:
        PAGE.write_text(_PAGE.format(cores=len(os.sched_getaffinity(0)), report=text))


def _http(*changes: str) -> Turn:
    """One turn of ours, with changes of the example's config."""

    def turn(_: Path, onnx_model: Path, points: Sequence[Point], seconds: float) -> Measured:
        port = free_port()
        every = [f"server.port={port}", "server.host=127.0.0.1", "logging.level=warning", *changes]
        words = [word.format(model=onnx_model) for each in every for word in ("--set", each)]
        return _served(["-m", "appliance", "serve", str(EXAMPLE), *words], "/readyz", port, points, seconds)

    return turn


def _vllm(torch_model: Path, _: Path, points: Sequence[Point], seconds: float) -> Measured:
    # The engine's settings are ours: float32 and no compilation.
    port = free_port()
    words = f"--model {torch_model} --served-model-name minilm --port {port} --host 127.0.0.1 --runner pooling"
    options = "--dtype float32 --enforce-eager --disable-uvicorn-access-log --kv-cache-memory-bytes 1000000000"
    command = ["-m", "vllm.entrypoints.openai.api_server", *words.split(), *options.split()]
    return _served(command, "/health", port, points, seconds)


def _in_process(name: str, requirement: str | None = None) -> Turn:
    """One turn of a library, which has a process of its own, and if it is none of ours an environment too."""

    def turn(torch_model: Path, onnx_model: Path, points: Sequence[Point], seconds: float) -> Measured:
        python = environment_with(requirement) / "python" if requirement else Path(sys.executable)
        # There is one caller: more of them would share the same cores.
        own = [point for point in points if point.clients == 1]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"points": [each.texts() for each in own], "varied": varied_texts()}, file)
            file.flush()
            model = onnx_model if requirement else torch_model
            command = [str(python), str(Path(__file__).with_name("embedders.py")), name, str(model), file.name]
            done = subprocess.run(
                [*command, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
            )
        found = json.loads(done.stdout.splitlines()[-1])
        return {point: tuple(each) for point, each in zip(own, found["points"], strict=True)}, found["vectors"]

    return turn


REFERENCE = "sentence-transformers, in process"

_ONNX = ("models.minilm.storage.uri={model}", "models.minilm.engine.backend=onnx")

CONTENDERS = (
    Contender("appliance, vllm", _http()),
    Contender("appliance, vllm bfloat16", _http("models.minilm.engine.dtype=bfloat16")),
    Contender("appliance, onnx", _http(*_ONNX)),
    Contender("appliance, onnx int8", _http(*_ONNX, "models.minilm.engine.file=onnx/model_quantized.onnx")),
    Contender("vLLM's own server", _vllm),
    Contender(REFERENCE, _in_process("sentence_transformers")),
    Contender("fastembed, in process", _in_process("fastembed", "fastembed==0.9.1")),
    Contender("fastembed int8, in process", _in_process("fastembed_int8", "fastembed==0.9.1")),
)


def _served(words: Sequence[str], ready: str, port: int, points: Sequence[Point], seconds: float) -> Measured:
    with _running(words, ready, port) as server:
        return {point: _rate(server, port, point, seconds) for point in points}, _vectors(port, varied_texts())


def _body(texts: Sequence[str]) -> bytes:
    # What the official clients ask for.
    body = {"model": "minilm", "input": texts, "encoding_format": "base64", "truncate_prompt_tokens": -1}
    return json.dumps(body).encode()


def _rate(server: psutil.Process, port: int, point: Point, seconds: float) -> tuple[float, float]:
    """Texts a second and CPU seconds per text of all the server's processes, after half a second of warming up."""
    body = _body(point.texts())
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    request = head.encode() + b"\r\n\r\n" + body
    uvloop.run(load(port, request, point.clients, 10**9, 0.5))
    before, began = _cpu_seconds(server), time.perf_counter()
    measured = uvloop.run(load(port, request, point.clients, 10**9, seconds))
    if measured["faults"]:
        raise SystemExit(f"{measured['faults']} requests failed at {point}")
    count = measured["rate"] * (time.perf_counter() - began) * point.batch
    return measured["rate"] * point.batch, (_cpu_seconds(server) - before) / count


def _cpu_seconds(server: psutil.Process) -> float:
    times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _vectors(port: int, texts: Sequence[str]) -> list[list[float]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings", _body(texts), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        data = json.load(response)["data"]
    return [np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist() for each in data]


@contextmanager
def _running(words: Sequence[str], ready: str, port: int) -> Iterator[psutil.Process]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=environment)
        try:
            _until_ready(process, f"http://127.0.0.1:{port}{ready}")
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("a server did not get ready")


def _report(turns: Mapping[str, Sequence[Measured]], rounds: int) -> str:
    """Return the tables."""
    rates, seconds = ({name: _medians(each, index) for name, each in turns.items()} for index in (0, 1))
    lines = [f"Medians of {rounds} round{'s'[: rounds != 1]}.", ""]
    lines += _table("texts/s", rates, lambda rate: f"{rate:,.0f}")
    lines += ["", *_table("CPU s per 1,000 texts", seconds, lambda each: f"{each * 1000:,.2f}")]
    if REFERENCE in turns:
        reference = np.array(turns[REFERENCE][-1][1])
        lines += ["", f"| | cosine with {REFERENCE.partition(',')[0]}: least | mean |", "|---|---|---|"]
        for name, each in turns.items():
            cosines = _cosines(np.array(each[-1][1]), reference)
            lines.append(f"| {name} | {cosines.min():.4f} | {cosines.mean():.4f} |")
    return "\n".join(lines) + "\n"


def _medians(turns: Sequence[Measured], index: int) -> Mapping[Point, float]:
    return {point: median(points[point][index] for points, _ in turns) for point in turns[0][0]}


def _cosines(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    cosines: np.ndarray = (vectors * reference).sum(axis=1) / norms
    return cosines


def _table(unit: str, values: Mapping[str, Mapping[Point, float]], show: Callable[[float], str]) -> Iterator[str]:
    yield "| " + " | ".join([f"{unit}: tokens", "batch", "clients", *values]) + " |"
    yield "|---" * (3 + len(values)) + "|"
    for point in sorted({point for each in values.values() for point in each}, key=POINTS.index):
        cells = [show(each[point]) if point in each else "" for each in values.values()]
        yield "| " + " | ".join([str(point.tokens), str(point.batch), str(point.clients), *cells]) + " |"


_PAGE = """# Embeddings

all-MiniLM-L6-v2 on a CPU with {cores} cores.
Servers are measured through HTTP, libraries in a process of their own without HTTP; the contenders take turns.
CPU seconds are those of all processes of a contender.
The cosine is that of 300 lines of these docs, of 8 to 150 words, compared with torch in float32.
The int8 file has a scale for each channel of its weights, and the matrices `output/dense` in float32.
`just bench embeddings --page` writes this page.

{report}"""


if __name__ == "__main__":
    main()
