"""The servers whose front ends are compared: how each is started, before a real engine or one that computes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server_process import free_port

from bench.answering import until_answering
from bench.rust_front_end import binary

MODEL = "bench"

# The one that is no server with an engine of its own.
RUST = "vllm-rs"

# The server has a processor of its own, and so do those who load it.
SERVER_CORE, LOAD_CORE = "1", "0"

# The model's own length, and that of prompts of 44,000 tokens, which only an engine that computes nothing takes.
_LENGTH, _FAKE_LENGTH = 2048, 65536

# More than are asked for at once: nobody waits before the engine.
_MOST_SEQUENCES = 1024

_KV_BYTES = 2**30

_START_SECONDS = 280.0

# Between two steps of the engine that computes nothing: 50 tokens a second for each stream.
STEP_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a server is started: its port, a folder of its own, the model's files, and the two addresses of an engine core
    that is there already; None has it start its own.
    """

    port: int
    folder: Path
    artifact: Path
    core: tuple[str, str] | None

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its answer."""
        return _LENGTH if self.core is None else _FAKE_LENGTH


Command = Callable[[Place], Sequence[str]]


def appliance(place: Place) -> Sequence[str]:
    """Ours, as it is by default, but in the number format that vLLM's own server computes in."""
    engine = {"max_model_len": place.max_model_len, "kv_cache_memory_bytes": _KV_BYTES, "dtype": "bfloat16"}
    model = {"name": MODEL, "class": "generative", "storage": {"uri": str(place.artifact)}, "engine": engine}
    file = place.folder / "appliance.yaml"
    if place.core is None:
        program = ["-m", "appliance"]
    else:
        # The engine core of another process needs no process of ours to be made from.
        model |= {"layout": {"executor": "multiprocess"}, "engine": {**engine, "max_num_seqs": _MOST_SEQUENCES}}
        program = ["-m", "bench.attached", "appliance", *place.core]
    file.write_text(json.dumps({"models": [model], "server": {"host": "127.0.0.1", "port": place.port}}))
    return [sys.executable, *program, "serve", str(file)]


def vllm(place: Place) -> Sequence[str]:
    """vLLM's own, as it is by default."""
    words = ["--model", str(place.artifact), "--served-model-name", MODEL, "--host", "127.0.0.1"]
    words += [
        "--port",
        str(place.port),
        "--max-model-len",
        str(place.max_model_len),
        "--kv-cache-memory-bytes",
        str(_KV_BYTES),
    ]
    if place.core is None:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    program = ["-m", "bench.attached", "vllm", *place.core]
    return [sys.executable, *program, *words, "--max-num-seqs", str(_MOST_SEQUENCES)]


def vllm_rs(place: Place) -> Sequence[str]:
    """vLLM's front end in Rust, as it is by default; see `rust_front_end`."""
    assert place.core is not None
    words = [str(binary()), *place.core, str(place.artifact), str(place.port), str(place.max_model_len)]
    return [sys.executable, "-m", "bench.rust_front_end", *words]


SUBJECTS: Mapping[str, Command] = {"appliance": appliance, "vllm": vllm, RUST: vllm_rs}


@contextlib.contextmanager
def started(name: str, artifact: Path, *, is_fake: bool) -> Iterator[tuple[int, int]]:
    """
    The port and the process of a server that answers; with an engine core that computes nothing it has a processor of
    its own.
    """
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        core = (f"ipc://{folder}/input", f"ipc://{folder}/output") if is_fake else None
        place = Place(free_port(), folder, artifact, core)
        pinned: Sequence[str] = ()
        if core is not None:
            pinned = pinned_to(SERVER_CORE)
            words = ["--input", core[0], "--output", core[1], "--words", str(artifact / "tokenizer.json")]
            words += ["--length", str(_FAKE_LENGTH)]
            fake = [sys.executable, "-m", "bench.fake_core", *words, "--step", str(STEP_SECONDS)]
            stack.enter_context(_process([*pinned_to(LOAD_CORE), *fake], folder / "core.log"))
        server = stack.enter_context(_process([*pinned, *SUBJECTS[name](place)], folder / "server.log"))
        until_answering(place.port, MODEL, server, folder / "server.log", _START_SECONDS)
        yield place.port, server.pid


def pinned_to(core: str) -> Sequence[str]:
    """What to put before a command that has this processor and no other."""
    return ["taskset", "--cpu-list", core]


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **_ENVIRONMENT}
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}
