"""What a server stands on gives way: the disk, the network, the clock."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from faults import confined
from faults.conftest import talks
from faults.ledger import Ledger
from server_process import ServerProcess, wait_until
from storage.range_server import serving
from upstreams import Answer, Upstream

MIB = 1 << 20
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

pytestmark = pytest.mark.faults

TALKER = {"name": "talker", "class": "generative", "engine": {"python": "tests.faults.talker:Talker"}}


def _elsewhere(url: str) -> dict[str, object]:
    """A proxy that notices within seconds."""
    timeouts = {"connect_seconds": 2, "first_byte_seconds": 4}
    health = {"path": "/health", "interval_seconds": 1}
    return {"name": "elsewhere", "class": "proxy", "health": health, "upstreams": [{"url": url, "timeouts": timeouts}]}


def _file(folder: Path, *models: object, **configs: object) -> Path:
    file = folder / "config.yaml"
    file.write_text(json.dumps({"models": models, **configs}))
    return file


def _state(server: ServerProcess, name: str) -> str | None:
    _, body = server.get("/readyz")
    return next((model["state"] for model in body["models"] if model["name"] == name), None) if body else None


def test_a_full_disk_fails_one_model_and_says_so(
    serve: Callable[..., ServerProcess], ledger: Ledger, tmp_path: Path
) -> None:
    """The model that does not fit says what to do; the one beside it goes on to answer."""
    confined.require_root()
    cache = tmp_path / "cache"
    cache.mkdir()
    with serving({"weights.safetensors": 64 * MIB}) as store:
        large = {**TALKER, "name": "large", "storage": {"uri": store.uri}}
        file = _file(tmp_path, TALKER, large, storage={"cache_dir": str(cache)})
        server = serve(file=file, prefix=confined.on_small_disk(cache, 16))
        wait_until(lambda: talks(server), 60, server.log_tail)

        with ledger.survived("disk full during a fetch", server, talks) as row:
            wait_until(lambda: _state(server, "large") == "failed", 60, server.log_tail)
            status, body = server.get("/livez")
            reason = next(model["reason"] for model in body["models"] if model["name"] == "large")
            row.happened = f"liveness {status}: {reason[-60:]}"

    assert status == 503
    assert "free some space" in reason


def test_a_network_that_goes_silent_under_a_fetch_costs_only_time(
    serve: Callable[..., ServerProcess], ledger: Ledger, tmp_path: Path
) -> None:
    """Packets vanish in the middle of a file: it is neither failed nor begun anew, and goes on when they pass again."""
    confined.require_root("iptables")
    files = {"weights.safetensors": 64 * MIB}
    with confined.link() as link, serving(files) as store, FaultProxy(store.port, confined.HERE) as border:
        is_far = threading.Event()
        store.trigger, store.at_byte = 24 * MIB, is_far.set
        stored = {**TALKER, "name": "stored", "storage": {"uri": f"{border.url}/model/"}}
        transfer = {"stall_seconds": 2, "chunk_bytes": MIB}
        file = _file(tmp_path, TALKER, stored, storage={"cache_dir": str(tmp_path / "c"), "transfer": transfer})
        server = serve(file=file, prefix=link.prefix, host=confined.THERE)
        assert is_far.wait(60), server.log_tail()
        link.cut(border.port)
        wait_until(lambda: talks(server), 60, server.log_tail)

        with ledger.survived(
            "network cut to storage", server, lambda server: talks(server) and _state(server, "stored") != "failed"
        ) as row:
            threading.Event().wait(6)
            state, live = _state(server, "stored"), server.get("/livez")[0]
            link.mend()
            seconds = wait_until(lambda: _state(server, "stored") == "ready", 90, server.log_tail)
            row.happened = f"{state} and liveness {live} for 6 s of silence; ready {seconds:.1f} s after it"

    assert (state, live) == ("fetching", 200)
    # What was there already was not asked for again, but for the pieces that were under way.
    assert store.sent < 64 * MIB + 16 * MIB


def test_a_network_that_goes_silent_before_upstreams_is_a_status_in_time(
    serve: Callable[..., ServerProcess], ledger: Ledger, scripted: Upstream, tmp_path: Path
) -> None:
    """New connections and old ones alike: an answer within the timeouts, others unharmed, and back by itself."""
    confined.require_root("iptables")
    with confined.link() as link, FaultProxy(scripted.port, confined.HERE) as border:
        file = _file(tmp_path, TALKER, _elsewhere(border.url))
        server = serve(file=file, prefix=link.prefix, host=confined.THERE).wait_until_ready(60)

        with ledger.survived(
            "network cut to upstream", server, lambda server: talks(server) and talks(server, "elsewhere")
        ) as row:
            link.cut(border.port)
            body = {"model": "elsewhere", "messages": [{"role": "user", "content": "hi"}]}
            first, _ = server.post("/v1/chat/completions", body)
            assert talks(server)
            wait_until(lambda: _state(server, "elsewhere") == "unavailable", 30, server.log_tail)
            later, _ = server.post("/v1/chat/completions", body)
            live = server.get("/livez")[0]
            link.mend()
            row.happened = f"{first}, then {later}; liveness {live}"

    assert first in {502, 504}
    assert (later, live) == (503, 200)


def test_a_clock_that_jumps_moves_nothing(
    serve: Callable[..., ServerProcess],
    ledger: Ledger,
    scripted: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A day forward and two back, in the middle of a stream and of a wait: no timeout comes sooner, none never."""
    if not FAKETIME.exists():
        pytest.skip("needs faketime")
    jump = tmp_path / "jump"
    jump.write_text("+0")
    fake = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(jump), "FAKETIME_NO_CACHE": "1"}
    for name, value in {**fake, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}.items():
        monkeypatch.setenv(name, value)
    server = serve(file=_file(tmp_path, TALKER, _elsewhere(scripted.origin))).wait_until_ready(60)

    def slowly(offset: str) -> int:
        scripted.on("/v1/chat/completions", Answer(200, b'{"choices": []}', wait=2))
        threading.Timer(0.5, jump.write_text, [offset]).start()
        return server.post("/v1/chat/completions", {"model": "elsewhere", "messages": []})[0]

    def streamed(offset: str) -> int:
        threading.Timer(0.5, jump.write_text, [offset]).start()
        body = {"model": "talker", "messages": [{"role": "user", "content": "tick"}]}
        return len(server.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"].split())

    with ledger.survived("clock jumps a day forward, two back", server, talks) as row:
        statuses = [slowly("+1d"), slowly("-1d")]
        words = [streamed("+1d"), streamed("-1d")]
        scripted.on("/v1/chat/completions", Answer(200, b'{"choices": []}', wait=6))
        late, _ = server.post("/v1/chat/completions", {"model": "elsewhere", "messages": []})
        scripted.on("/v1/chat/completions")
        row.happened = f"{statuses} after 2 s, {late} after the timeout of 4 s, streams whole"

    days = {event["timestamp"][:10] for event in server.events() if event["event"] == "request.ended"}
    assert statuses == [200, 200]
    assert words == [50, 50]
    assert late == 504
    # It did jump.
    assert len(days) > 1
