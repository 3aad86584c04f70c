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
_MOST_SEQUENCES = 2048

_KV_BYTES = 2**30

_START_SECONDS = 280.0

# Between two steps of the engine that computes nothing: 50 tokens a second for each stream.
STEP_SECONDS = 0.02

# Each of several front ends has given one of so many answers.
_ANSWERS_OF_FRONT_ENDS = 20

# With several front ends, 1,000 streams get more than a core delivers.
_FAST_STEP_SECONDS = 0.01


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
    front_ends: int = 1

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
        program = ["-m", "bench.attached", "appliance", *place.core, str(place.front_ends)]
    server = {"host": "127.0.0.1", "port": place.port, "workers": place.front_ends}
    file.write_text(json.dumps({"models": [model], "server": server}))
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
    program = ["-m", "bench.attached", "vllm", *place.core, str(place.front_ends)]
    return [sys.executable, *program, *words, "--max-num-seqs", str(_MOST_SEQUENCES)]


def vllm_rs(place: Place) -> Sequence[str]:
    """vLLM's front end in Rust, as it is by default; see `rust_front_end`."""
    assert place.core is not None
    words = [str(binary()), *place.core, str(place.artifact), str(place.port), str(place.max_model_len)]
    # One process, whose threads are what others have processes for.
    return ["env", f"TOKIO_WORKER_THREADS={place.front_ends}", sys.executable, "-m", "bench.rust_front_end", *words]


SUBJECTS: Mapping[str, Command] = {"appliance": appliance, "vllm": vllm, RUST: vllm_rs}


@contextlib.contextmanager
def started(name: str, artifact: Path, *, is_fake: bool, front_ends: int | None = None) -> Iterator[tuple[int, int]]:
    """
    The port and the process of a server that answers; with an engine core that computes nothing it has a processor of
    its own, unless it has a number of front ends, which share all processors with the engine core and the clients.
    """
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        core = (f"ipc://{folder}/input", f"ipc://{folder}/output") if is_fake else None
        place = Place(free_port(), folder, artifact, core, front_ends or 1)
        is_pinned = is_fake and front_ends is None
        if core is not None:
            words = ["--input", core[0], "--output", core[1], "--words", str(artifact / "tokenizer.json")]
            words += ["--length", str(_FAKE_LENGTH), "--step", str(_FAST_STEP_SECONDS if front_ends else STEP_SECONDS)]
            # The one in Rust is one client, however many threads it has.
            words += ["--clients", str(1 if name == RUST else place.front_ends)]
            fake = [*(pinned_to(LOAD_CORE) if is_pinned else ()), sys.executable, "-m", "bench.fake_core", *words]
            stack.enter_context(_process(fake, folder / "core.log"))
        pinned = pinned_to(SERVER_CORE) if is_pinned else ()
        server = stack.enter_context(_process([*pinned, *SUBJECTS[name](place)], folder / "server.log"))
        times = 1 if place.front_ends == 1 else _ANSWERS_OF_FRONT_ENDS
        until_answering(place.port, MODEL, server, folder / "server.log", _START_SECONDS, times)
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
