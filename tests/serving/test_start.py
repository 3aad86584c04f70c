"""A start with a real engine: what is done at the same time, what is chosen, and what is kept for the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_process import ServerProcess, free_port, wait_until
from storage.range_server import serving

EMBEDDINGS = Path(__file__).parents[2] / "examples" / "embeddings.yaml"


def _has_loaded(process: psutil.Process, library: str) -> bool:
    return any(library in each.path for each in process.memory_maps())


def _states_until_ready(server: ServerProcess) -> dict[str, tuple[int, dict[str, Any]]]:
    """The status of readiness and what it says of the model, of each state in order; liveness is 200 in all of them."""
    seen: dict[str, tuple[int, dict[str, Any]]] = {}
    while "ready" not in seen:
        status, body = server.get("/readyz")
        (model,) = body["models"]
        seen.setdefault(model["state"], (status, model))
        assert model["state"] not in {"failed", "stopped"}, server.log_tail()
        assert server.get("/livez")[0] == 200
        time.sleep(0.01)
    return seen


def test_a_first_start_passes_every_state_and_ready_means_an_answer(
    serve: Callable[..., ServerProcess], smollm2: Path, tmp_path: Path
) -> None:
    """The port opens at once, and each state says why; calls are refused until one would succeed.

    The last bytes are held back until this process and the one that the engine is forked from import Torch; then the
    load goes on to an answer, with the phases in the log and the probes, and the profile as the machine suggests it.
    """
    may_end = threading.Event()

    def hold() -> None:
        may_end.wait(120)

    files = {path.name: path.read_bytes() for path in smollm2.iterdir()}
    cache, probe_port = tmp_path / "cache", free_port()
    with serving(files) as web:
        web.trigger, web.at_byte = sum(map(len, files.values())) // 2, hold
        server = serve(
            f"server.probe_port={probe_port}",
            f"models.smollm2.storage.uri={web.uri}",
            f"storage.cache_dir={cache}",
            "storage.transfer.stall_seconds=150",
            "models.smollm2.layout.cpu_threads=1",
            is_cold=True,
        )
        process = psutil.Process(server.process.pid)
        wait_until(lambda: server.get("/livez")[0] == 200, 60)
        opened = process.cpu_times()
        refused, error = server.post("/v1/completions", {"prompt": "Hi"})
        wait_until(lambda: server.state() == "fetching", 30)
        wait_until(lambda: _has_loaded(process, "libtorch_cpu"), 60, server.log_tail)
        wait_until(lambda: any(_has_loaded(each, "libtorch_cpu") for each in server.descendants()), 60, server.log_tail)
        state = server.state()
        may_end.set()
        seen = _states_until_ready(server)
    answered, _ = server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1})
    load = server.get("/readyz")[1]["models"][0]["load"]
    (loaded,) = [event for event in server.events() if event["event"] == "model.loaded"]
    (profile,) = [event for event in server.events() if event["event"] == "cpu_profile.selected"]

    # Of the processor, since other programs may keep it busy: two seconds on a machine of its own, and a margin.
    assert opened.user + opened.system < 6
    assert (refused, error["error"]["code"]) == (503, "model_not_ready")
    assert state == "fetching"
    assert list(seen) == ["fetching", "loading", "proving", "ready"]
    assert {state: status for state, (status, _) in seen.items() if status == 200} == {"ready": 200}
    assert all(set(model) >= {"name", "state", "since", "reason"} for _, model in seen.values())
    assert answered == 200
    assert load == {name: loaded[name] for name in load}
    assert set(load["phases"]) == {"pending", "fetching", "loading", "proving"}
    assert {"imports", "config", "weights", "kv_cache", "engine", "front_end"} <= set(load["parts"])
    assert (profile["threads"], profile["overridden_by"]) == (1, ["layout.cpu_threads"])
    assert _has_loaded(server.engine_core(), "libiomp5") == (profile["openmp"] == "libiomp5")
    assert list(cache.glob(".compiled/*/vllm/modelinfos/*.json"))
    assert [server.get(path)[0] for path in ("/livez", "/startupz", "/health", "/ping")] == [200] * 4
    assert server.get("/readyz", port=probe_port)[0] == 200
    assert server.get("/v1/models", port=probe_port)[0] == 404
    assert server.stop() == 0


@pytest.mark.long
def test_what_is_compiled_is_there_for_the_next_start(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """
    With `enforce_eager: false` the first start compiles into the storage's directory, and the second finds it there.
    """
    cache = tmp_path / "cache"

    def start() -> set[Path]:
        server = serve(
            f"storage.cache_dir={cache}", "models.minilm.engine.enforce_eager=false", file=EMBEDDINGS, is_cold=True
        ).wait_until_ready()
        (profile,) = [event for event in server.events() if event["event"] == "cpu_profile.selected"]
        assert (profile["eager"], profile["overridden_by"]) == (False, ["engine.enforce_eager"])
        assert server.stop() == 0
        return set(cache.glob(".compiled/**/*.so"))

    first = start()
    second = start()

    assert first
    assert second == first
