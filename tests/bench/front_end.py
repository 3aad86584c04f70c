"""What the front end adds to the engine: ours beside vLLM's servers in Python and Rust, on this machine in this run.

``just bench front-end`` starts all again and again, one after the other, before an engine core that computes nothing
(`fake_core.py`) and before a real one, loads them (`chats.py`), and writes a table, a plot and the figures themselves
into ``docs/bench/``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.config import load
from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import ModelFactory
from bench import front_end_page
from bench.chats import Measured, share
from bench.front_ends import LOAD_CORE, MODEL, RUST, SUBJECTS, pinned_to, started
from bench.rust_front_end import UnavailableError, binary

_ROOT = Path(__file__).parents[2]
_CHAT = _ROOT / "examples" / "chat.yaml"
_FIGURES = _ROOT / "docs" / "bench" / "front-end.json"


@dataclass(frozen=True, slots=True)
class Level:
    """A load; `warm_up_seconds` is until as many are under way as will be."""

    name: str
    connections: int
    tokens: int
    warm_up_seconds: float
    is_streamed: bool = True
    prompt_words: int = 0


LEVELS = {
    "fake": (
        Level("1", 1, 32, 1),
        Level("16", 16, 128, 2),
        Level("64", 64, 256, 2),
        Level("256", 256, 256, 4),
        Level("1000", 1000, 256, 10),
        Level("short", 64, 16, 2, is_streamed=False),
        Level("long", 16, 64, 4, prompt_words=8000),
    ),
    "real": (Level("1", 1, 32, 2), Level("32", 32, 128, 6)),
    # Measured together, by `long_prompts.py`.
    "prompts": (Level("quiet", 64, 256, 4), Level("20 long prompts/s", 64, 256, 4)),
    # Each has a server of its own, with as many front ends as its name says.
    "workers": (Level("1", 1000, 256, 10), Level("2", 1000, 256, 10)),
}
"""By the engine behind the front end; that of `prompts` and `workers` is the fake one."""

# What each server calls its probes.
_PROBES = {"appliance": ("/livez", "/readyz")}


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="how often each is started")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each load is measured")
    parser.add_argument("--engine", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--levels", nargs="+", help="the names of loads, all unless said")
    parser.add_argument("--into", type=Path, default=_FIGURES, help="a file of JSON; what it has of others stays")
    parser.add_argument("--more", action="store_true", help="keep the runs that are there, and add to them")
    given = parser.parse_args()
    (config,) = load(_CHAT).config.models
    artifact = ModelFactory().materialize(config, GlobalStorageConfig(), lambda *_: None)["model"]
    given.into.parent.mkdir(parents=True, exist_ok=True)
    for engine in given.engine:
        for figures in _measure(engine, artifact, given):
            # After each server, so that what was measured stays, whatever becomes of the next.
            _keep(given.into, engine, figures)
    _say(front_end_page.write(given.into))


def _measure(engine: str, artifact: Path, given: argparse.Namespace) -> Iterator[Mapping[str, object]]:
    """The figures so far, by load and by server, after each server."""
    levels = [level for level in LEVELS[engine] if given.levels is None or level.name in given.levels]
    before = _kept(given.into).get(engine, {}) if given.more else {}
    subjects = [name for name in given.only if name != RUST or _has_rust(engine)]
    figures = {level.name: {name: before.get(level.name, {}).get(name, []) for name in subjects} for level in levels}
    for name in [name for _ in range(given.pairs) for name in subjects]:
        _say(f"measuring {name} before a {engine} engine")
        for together in [[level] for level in levels] if engine == "workers" else [levels]:
            count = int(together[0].name) if engine == "workers" else None
            with started(name, artifact, is_fake=engine != "real", front_ends=count) as (port, process):
                runs = _runs(name, port, process, together, given.seconds, engine)
                for level, values in zip(together, runs, strict=True):
                    figures[level.name][name].append(values)
                    _say(f"  {level.name}: {values}")
        yield figures


def _runs(
    name: str, port: int, process: int, levels: Sequence[Level], seconds: float, engine: str
) -> Iterator[dict[str, float]]:
    """What is kept of each load of a server."""
    if engine == "prompts":
        yield from _long_prompts(name, port, process, seconds)
    else:
        for level in levels:
            yield _figures(_load(port, process, level, seconds, engine))


def _has_rust(engine: str) -> bool:
    """Whether the Rust front end can be measured; says why not."""
    if engine == "real":
        _say(f"{RUST} is not measured before a {engine} engine")
        return False
    try:
        binary()
    except UnavailableError as error:
        _say(f"{RUST} is not measured: {error}")
        return False
    return True


def _keep(file: Path, engine: str, figures: Mapping[str, object]) -> None:
    file.write_text(json.dumps({**_kept(file), engine: figures}, indent=1) + "\n")


def _kept(file: Path) -> dict[str, Any]:  # Any: JSON values
    return json.loads(file.read_text()) if file.exists() else {}


def _load(port: int, process: int, level: Level, seconds: float, engine: str) -> Measured:
    words = ["--port", port, "--process", process, "--model", MODEL, "--connections", level.connections]
    words += ["--tokens", level.tokens, "--warm-up", level.warm_up_seconds, "--seconds", seconds]
    words += [] if level.is_streamed else ["--whole"]
    words += ["--words"] if engine != "real" else []
    words += ["--prompt-words", level.prompt_words]
    return Measured(**_run("bench.chats", words, pinned_to(LOAD_CORE) if engine == "fake" else ()))


def _run(module: str, words: Sequence[object], pinned: Sequence[str]) -> Any:  # Any: JSON values
    command = [*pinned, sys.executable, "-m", module, *map(str, words)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _long_prompts(name: str, port: int, process: int, seconds: float) -> Sequence[dict[str, float]]:
    """The figures of `long_prompts.py`, without and with them."""
    words = ["--port", port, "--process", process, "--model", MODEL, "--seconds", seconds]
    figures: Sequence[dict[str, float]] = _run(
        "bench.long_prompts", [*words, "--probes", *_PROBES.get(name, ("/health",))], pinned_to(LOAD_CORE)
    )
    return figures


def _figures(measured: Measured) -> dict[str, float]:
    """What is kept of a run."""
    return {
        "tokens_per_second": measured.tokens / measured.seconds,
        "answers_per_second": measured.answers / measured.seconds,
        "tokens_per_event": measured.tokens / measured.events if measured.events else 0.0,
        "processor_us_per_token": measured.processor_seconds / measured.tokens * 1e6,
        "processor_share": measured.processor_seconds / measured.seconds,
        "first_p50_ms": share(measured.firsts, 50) * 1000,
        "first_p99_ms": share(measured.firsts, 99) * 1000,
        "longest_gap_ms": measured.longest_gap * 1000,
        "resident_mb": measured.resident_bytes / 1e6,
        "faults": measured.faults,
    }


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
