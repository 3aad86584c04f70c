"""A start with a real engine: what is done at the same time, what is chosen, and what is kept for the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from served import Served, until
from storage.range_server import serving

EMBEDDINGS = Path(__file__).parents[2] / "examples" / "embeddings.yaml"


def _has_loaded(process: psutil.Process, library: str) -> bool:
    return any(library in each.path for each in process.memory_maps())


def test_a_start_imports_while_it_fetches_and_says_what_it_was_spent_on(
    serve: Callable[..., Served], smollm2: Path, tmp_path: Path
) -> None:
    """The last bytes are held back until this process and the one that the engine is forked from import Torch; then the
    load goes on to an answer, with the phases in the log and the probes, and the profile as the machine suggests it.
    """
    may_end = threading.Event()

    def hold() -> None:
        may_end.wait(120)

    files = {path.name: path.read_bytes() for path in smollm2.iterdir()}
    cache = tmp_path / "cache"
    with serving(files) as web:
        web.trigger, web.at_byte = sum(map(len, files.values())) // 2, hold
        server = serve(
            f"models.smollm2.storage.uri={web.uri}",
            f"storage.cache_dir={cache}",
            "storage.transfer.stall_seconds=150",
            "models.smollm2.layout.cpu_threads=1",
            is_cold=True,
        )
        until(lambda: server.state() == "fetching", 30)
        process = psutil.Process(server.process.pid)
        until(lambda: _has_loaded(process, "libtorch_cpu"), 60, server.tail)
        until(lambda: any(_has_loaded(each, "libtorch_cpu") for each in server.descendants()), 60, server.tail)
        state = server.state()
        may_end.set()
        server.until_ready()
    load = server.get("/readyz")[1]["models"][0]["load"]
    (loaded,) = [event for event in server.events() if event["event"] == "model.loaded"]
    (profile,) = [event for event in server.events() if event["event"] == "profile.chosen"]

    assert state == "fetching"
    assert load == {name: loaded[name] for name in load}
    assert set(load["phases"]) == {"pending", "fetching", "loading", "proving"}
    assert {"imports", "config", "weights", "kv_cache", "engine", "front_end"} <= set(load["parts"])
    assert (profile["threads"], profile["said"]) == (1, ["layout.cpu_threads"])
    assert _has_loaded(server.engine_core(), "libiomp5") == (profile["openmp"] == "libiomp5")
    assert list(cache.glob(".compiled/*/vllm/modelinfos/*.json"))
    assert server.end() == 0


@pytest.mark.long
def test_what_is_compiled_is_there_for_the_next_start(serve: Callable[..., Served], tmp_path: Path) -> None:
    """
    With `enforce_eager: false` the first start compiles into the storage's directory, and the second finds it there.
    """
    cache = tmp_path / "cache"

    def start() -> set[Path]:
        server = serve(
            f"storage.cache_dir={cache}", "models.minilm.engine.enforce_eager=false", file=EMBEDDINGS, is_cold=True
        ).until_ready()
        (profile,) = [event for event in server.events() if event["event"] == "profile.chosen"]
        assert (profile["eager"], profile["said"]) == (False, ["engine.enforce_eager"])
        assert server.end() == 0
        return set(cache.glob(".compiled/**/*.so"))

    first = start()
    second = start()

    assert first
    assert second == first
