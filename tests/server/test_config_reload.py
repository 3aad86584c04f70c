"""A file that changes while it is served: what is applied, what waits, and that nobody's request is lost over it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
from repeated_requests import RepeatedRequests, chat_bodies
from server_process import ServerProcess, open_stream, wait_until
from upstreams import Upstream, error, event, stream, well_behaved

from appliance.config.base import Change
from appliance.config.diff import keys_of

CHAT = "/v1/chat/completions"
KEY = "a-key-that-is-long-enough"

HOT_BELOW = {
    "models.NAME.aliases",
    "models.NAME.request",
    "models.NAME.fallback",
    "models.NAME.limits",
    "models.NAME.slo",
    "server.api_keys",
    "server.metrics",
    "server.limits",
    "server.drain_delay_seconds",
}


class File:
    """A config that is served, and its next versions."""

    def __init__(self, path: Path, *urls: str) -> None:
        self.path = path
        models = [
            {"name": f"m{index}", "class": "proxy", "upstreams": [{"url": url}]} for index, url in enumerate(urls)
        ]
        self.content: dict[str, Any] = {"models": models, "server": {}, "logging": {}}
        self.write()

    def write(self, **configs: Any) -> None:
        """Put other sections in."""
        self.content |= configs
        self.path.write_text(json.dumps(self.content, indent=2))

    @property
    def digest(self) -> str:
        """What `sha256sum` prints."""
        return sha256(self.path.read_bytes()).hexdigest()


def _config(server: ServerProcess) -> dict[str, Any]:
    status, body = server.get("/readyz")
    assert status == 200, body
    config: dict[str, Any] = body["config"]
    return config


def _send_hup(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGHUP)


def _wait_until_served(server: ServerProcess, digest: str) -> None:
    wait_until(lambda: _config(server)["digest"] == digest, 30, server.log_tail)


def _events_named(server: ServerProcess, name: str) -> list[dict[str, Any]]:
    return [each for each in server.events() if each["event"] == name]


def test_hot_keys_are_applied_without_a_lost_request(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """Each of them holds from then on; two signals at once are no more than one."""
    file = File(tmp_path / "a.yaml", upstream.url)
    server = serve(file=file.path).wait_until_ready(60)
    assert server.post("/v2/repository/models/m0/unload", {})[0] == 403
    with RepeatedRequests(server, CHAT, *chat_bodies("m0", "m0")) as asking:
        asking.wait_for_more()
        file.write(
            server={"drain_seconds": 7, "admin": True},
            expect=[{"path": "/livez"}],
            storage={"transfer": {"parallel": 4}, "credentials": {"http": [{"host": "files", "headers": {"a": "b"}}]}},
        )
        _send_hup(server)
        _send_hup(server)
        _wait_until_served(server, file.digest)
        asking.wait_for_more()

    assert asking.failures == []
    assert {each["path"]: each["change"] for each in _events_named(server, "config.changed")} == {
        "server.drain_seconds": "hot",
        "server.admin": "hot",
        "expect[0]": "hot",
        "storage.transfer.parallel": "hot",
        "storage.credentials.http[0]": "hot",
    }
    # Each hot key is in this test or in those below.
    assert set(keys_of(Change.HOT)) - _changed_hot_keys(file) == {"server.watch", *HOT_BELOW}
    for level, path in (("error", "/v1/models/m0"), ("info", "/v1/models")):
        file.write(logging={"level": level})
        _send_hup(server)
        _wait_until_served(server, file.digest)
        assert server.get(path)[0] == 200
    wait_until(lambda: "/v1/models" in _requested_paths(server), 30)
    assert "/v1/models/m0" not in _requested_paths(server)
    assert server.post("/v2/repository/models/m0/unload", {})[0] == 200
    assert server.stop() == 0
    assert _events_named(server, "server.draining")[0]["seconds"] == 7


def test_keys_and_limits_hold_from_the_reload_on(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """
    Without a key nobody is let in any more, with one as often as it allows; a file without keys opens the server again.
    """
    file = File(tmp_path / "a.yaml", upstream.url)
    server = serve(file=file.path).wait_until_ready(60)
    body = chat_bodies("m0")[0]
    deep = {**body, "metadata": [[[[[[[[1]]]]]]]]}
    keyed = {"Authorization": f"Bearer {KEY}"}
    assert [server.post(CHAT, each)[0] for each in (body, deep)] == [200, 200]

    file.content["models"][0] |= {"limits": {"total_seconds": 50}, "slo": {"ttft_seconds": 40}}
    key = {"name": "team", "value": KEY, "limits": {"requests_per_minute": 2}}
    file.write(
        server={"api_keys": [key], "metrics": "open", "limits": {"json_depth": 8}},
    )
    _send_hup(server)
    wait_until(lambda: server.post(CHAT, body)[0] == 401, 30, server.log_tail)

    assert [server.ask(CHAT, each, keyed)[0] for each in (deep, body, body, body)] == [400, 200, 200, 429]
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as metrics:
        assert metrics.status == 200
    assert {(each["path"], each["change"]) for each in _events_named(server, "config.changed")} == {
        ("models.m0.limits.total_seconds", "hot"),
        ("models.m0.slo.ttft_seconds", "hot"),
        ("server.api_keys", "hot"),
        ("server.metrics", "hot"),
        ("server.limits.json_depth", "hot"),
    }
    file.write(server={})
    _send_hup(server)
    wait_until(lambda: server.post(CHAT, deep)[0] == 200, 30, server.log_tail)


def test_a_fallback_answers_from_the_reload_on(
    serve: Callable[..., ServerProcess], upstreams: Callable[[], Upstream], tmp_path: Path
) -> None:
    """The model stays loaded."""
    busy, other = upstreams(), upstreams()
    busy.on(CHAT, lambda _: error(429, "busy"))
    file = File(tmp_path / "a.yaml", busy.url, other.url)
    server = serve(file=file.path).wait_until_ready(60)
    body = chat_bodies("m0")[0]
    assert server.post(CHAT, body)[0] == 429

    file.content["models"][0]["fallback"] = [{"model": "m1", "on": ["overloaded"]}]
    file.write()
    _send_hup(server)
    wait_until(lambda: server.post(CHAT, body)[0] == 200, 30, server.log_tail)

    (changed,) = _events_named(server, "config.changed")
    assert changed["change"] == "hot"
    assert server.stop() == 0


def _requested_paths(server: ServerProcess) -> set[str]:
    return {each["path"] for each in _events_named(server, "request.ended")}


def _changed_hot_keys(file: File) -> set[str]:
    configs = {key: value for key, value in file.content.items() if key != "models"}
    return {*configs, *(f"{key}.{each}" for key, value in configs.items() if key != "expect" for each in value)}


def test_a_model_without_an_engine_is_swapped_without_a_lost_request(
    serve: Callable[..., ServerProcess], upstreams: Callable[[], Upstream], tmp_path: Path
) -> None:
    """A stream that was begun ends where it began, and what is asked after that is asked elsewhere."""
    one, two = upstreams(), upstreams()
    slow = stream(event({"n": 1}), 4.0, event({"n": 2}), event("[DONE]"))
    file = File(tmp_path / "a.yaml", one.url, one.url)
    file.write(metadata={"name": "talk"})
    server = serve(file=file.path).wait_until_ready(60)
    with RepeatedRequests(server, CHAT, *chat_bodies("m0", "m1")) as asking:
        asking.wait_for_more()
        one.on(CHAT, lambda asked: slow if asked.json().get("stream") else well_behaved(asked))
        connection = open_stream(server.port, CHAT, chat_bodies("m0")[0] | {"stream": True})
        assert connection.recv(100)
        file.content["models"][0]["upstreams"] = [{"url": two.url}]
        file.content["models"].append({"name": "m2", "class": "proxy", "upstreams": [{"url": two.url}]})
        file.write()
        _send_hup(server)
        _wait_until_served(server, file.digest)
        wait_until(lambda: len(two.calls) > 0, 60, server.log_tail)
        text = b"".join(iter(lambda: connection.recv(4096), b""))
        connection.close()
        assert b'"n":2' in text.replace(b" ", b"")
        assert b"[DONE]" in text
        asking.wait_for_more()

    assert asking.failures == []
    assert server.post(f"/publishers/default/models/m2{CHAT}", chat_bodies("m2")[0])[0] == 200
    published = "publishers/default/models/m2"
    assert server.post(CHAT, chat_bodies(published)[0])[1]["model"] == published
    assert '"m2"' in json.dumps(server.get("/schema/openapi.json")[1])
    file.content["models"] = file.content["models"][1:]
    file.write()
    _send_hup(server)
    _wait_until_served(server, file.digest)
    assert server.post(CHAT, chat_bodies("m0")[0])[0] == 404
    wait_until(
        lambda: {each["to"] for each in _events_named(server, "model.state_changed")} >= {"draining", "stopped"}, 30
    )
    assert server.stop() == 0


def test_a_bad_file_changes_nothing_and_the_next_good_one_does(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """
    The last good one is served meanwhile, and the probe says what is wrong: line and column, and no line of the file.
    """
    file = File(tmp_path / "a.yaml", upstream.url)
    server = serve(file=file.path).wait_until_ready(60)
    good, digest = file.path.read_text(), file.digest
    file.path.write_text(good.replace('"m0"', '"m0", "aliaes": []'))
    _send_hup(server)
    wait_until(lambda: _config(server)["error"] is not None, 30)
    config = _config(server)

    assert config["digest"] == digest
    assert config["error"] == f'{file.path}:4:21: models[0].aliaes: unknown key; did you mean "aliases"?'
    assert server.post(CHAT, chat_bodies("m0")[0])[0] == 200

    alias = {"name": "n0", "request": {"override": {"temperature": 0.125}}}
    file.path.write_text(
        good.replace('"m0"', f'"m0", "request": {{"defaults": {{"top_p": 0.5}}}}, "aliases": [{json.dumps(alias)}]')
    )
    _send_hup(server)
    _wait_until_served(server, file.digest)
    assert _config(server)["error"] is None
    assert server.post(CHAT, chat_bodies("n0")[0])[0] == 200
    assert (upstream.calls[-1].json()["temperature"], upstream.calls[-1].json()["top_p"]) == (0.125, 0.5)
    assert {each["change"] for each in _events_named(server, "config.changed")} == {"hot"}
    assert len(_events_named(server, "config.rejected")) == 1
    assert server.stop() == 0


def test_what_needs_a_restart_waits_with_all_else_of_its_file(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """Nothing of the file is applied, and the probe names the keys; so it is with a model that fails."""
    file = File(tmp_path / "a.yaml", upstream.url)
    server = serve(file=file.path).wait_until_ready(60)
    before = file.digest
    file.write(server={"max_body_bytes": 2048}, logging={"level": "debug"})
    _send_hup(server)
    wait_until(lambda: _config(server)["restart_required"] != [], 30)

    assert _config(server)["restart_required"] == ["server.max_body_bytes"]
    assert _config(server)["digest"] == before
    assert all(each["level"] != "debug" for each in server.events())

    python = {"name": "p", "class": "generative", "engine": {"python": "nowhere_to_be_found:Model"}}
    file.write(server={}, models=[*file.content["models"], python])
    _send_hup(server)
    wait_until(lambda: _config(server)["error"] is not None, 30)

    assert "models.p: engine.python: nowhere_to_be_found:Model: there is no module" in _config(server)["error"]
    assert _config(server)["restart_required"] == []
    assert _config(server)["digest"] == before
    assert server.get("/livez")[0] == 200
    assert server.post(CHAT, chat_bodies("p")[0])[0] == 404
    assert server.stop() == 0


def _mount(folder: Path, number: int, **files: str) -> None:
    """Fill a volume as kubelet does: files in a directory of their own, and one link that is renamed over.

    Source: https://github.com/kubernetes/kubernetes, pkg/volume/util/atomic_writer.go
    """
    place = folder / f"..2026_{number}"
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    before = (folder / "..data").resolve()
    (folder / "..data_tmp").symlink_to(place.name)
    (folder / "..data_tmp").rename(folder / "..data")
    for old in before.glob("*") if before != folder / "..data" else ():
        old.unlink()


def test_a_config_map_and_a_secret_that_change_are_noticed(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """Both are watched, though no file of theirs is ever written; the new secret is used, and neither is in the log."""
    config, secret = tmp_path / "config", tmp_path / "secret"
    text = f"""\
models:
  - {{name: m0, class: proxy, upstreams: [{{url: {upstream.url}, api_key: "${{file:{secret}/key}}"}}]}}
server: {{watch: true}}
"""
    _mount(secret, 1, key="the-first-secret\n")
    _mount(config, 1, config=text)
    server = serve(file=config / "config").wait_until_ready(60)
    with RepeatedRequests(server, CHAT, *chat_bodies("m0")) as asking:
        asking.wait_for_more()
        _mount(secret, 2, key="the-second-secret\n")
        wait_until(
            lambda: upstream.calls[-1].header("authorization") == "Bearer the-second-secret", 30, server.log_tail
        )
        _mount(config, 2, config=text.replace("name: m0", "name: m0, aliases: [n0]"))
        wait_until(lambda: server.post(CHAT, chat_bodies("n0")[0])[0] == 200, 30, server.log_tail)

    assert asking.failures == []
    assert [(each["path"], each["old"], each["new"]) for each in _events_named(server, "config.changed")] == [
        ("models.m0.upstreams[0].api_key", "***", "***"),
        ("models.m0.aliases", [], ["n0"]),
    ]
    assert "-secret" not in server.log.read_text()
    assert server.stop() == 0


def test_half_a_file_never_replaces_a_whole_one(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """Whoever writes in place, and however slowly, the models that are served are those of a whole file."""
    file = File(tmp_path / "a.yaml", upstream.url)
    file.write(server={"watch": True})
    server = serve(file=file.path).wait_until_ready(60)
    file.content["models"][0]["aliases"] = ["n0"]
    whole = json.dumps(file.content, indent=2)
    with RepeatedRequests(server, CHAT, *chat_bodies("m0")) as asking, file.path.open("w") as writing:
        for half in (whole[:60], whole[60:120]):
            writing.write(half)
            writing.flush()
            os.fsync(writing.fileno())
            wait_until(lambda: _config(server)["error"] is not None, 30, server.log_tail)
            asking.wait_for_more()
        writing.write(whole[120:])
        writing.flush()
        wait_until(lambda: server.post(CHAT, chat_bodies("n0")[0])[0] == 200, 30, server.log_tail)

    assert asking.failures == []
    assert _config(server)["error"] is None
    assert {each["path"] for each in _events_named(server, "config.changed")} == {"models.m0.aliases"}
    assert server.stop() == 0


def test_every_worker_changes_and_so_does_one_that_is_born_later(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """A signal to the parent reaches all, and who takes the place of a dead one serves the file of now."""
    file = File(tmp_path / "a.yaml", upstream.url)
    file.write(server={"workers": 2})
    server = serve(file=file.path).wait_until_ready(60)
    with RepeatedRequests(server, CHAT, *chat_bodies("m0")) as asking:
        asking.wait_for_more()
        file.content["models"].append({"name": "m1", "class": "proxy", "upstreams": [{"url": upstream.url}]})
        file.write(logging={"level": "warning"})
        _send_hup(server)
        wait_until(lambda: len(_events_named(server, "config.applied")) == 2 or _is_quiet(server), 30, server.log_tail)
        wait_until(lambda: all(_config(server)["digest"] == file.digest for _ in range(10)), 30, server.log_tail)
        asking.wait_for_more()
    assert asking.failures == []
    assert [server.post(CHAT, chat_bodies("m1")[0])[0] for _ in range(10)] == [200] * 10

    victim, _ = psutil.Process(server.process.pid).children()
    victim.kill()
    wait_until(lambda: _pids(server).isdisjoint({victim.pid}) and len(_pids(server)) == 2, 30, server.log_tail)
    wait_until(lambda: server.get("/readyz")[0] == 200, 30, server.log_tail)

    assert [server.post(CHAT, chat_bodies("m1")[0])[0] for _ in range(20)] == [200] * 20
    assert server.stop() == 0, server.log_tail()
    late = [
        each
        for each in server.events()
        if each["logger"].startswith("appliance") and "worker" in each and each["timestamp"] > _death(server)
    ]
    assert [each for each in late if each["level"] == "info"] == []


def _is_quiet(server: ServerProcess) -> bool:
    return len(_events_named(server, "config.changed")) > 0


def _pids(server: ServerProcess) -> set[int]:
    _, body = server.get("/readyz")
    return {worker["pid"] for worker in body["workers"] if worker["ready"]} if body else set()


def _death(server: ServerProcess) -> str:
    (death,) = _events_named(server, "worker.died")
    timestamp: str = death["timestamp"]
    return timestamp


def test_an_unloaded_model_stays_unloaded_until_its_section_changes(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """What an operator did holds against a file that says nothing about it."""
    file = File(tmp_path / "a.yaml", upstream.url, upstream.url)
    file.write(server={"admin": True})
    server = serve(file=file.path).wait_until_ready(60)
    assert server.post("/v2/repository/models/m0/unload", {})[0] == 200
    file.content["models"][1]["keep_alive_seconds"] = 7
    file.write()
    _send_hup(server)
    _wait_until_served(server, file.digest)
    assert server.state() == "unloaded"

    file.content["models"][0]["keep_alive_seconds"] = 7
    file.write()
    _send_hup(server)
    _wait_until_served(server, file.digest)
    assert server.state() == "ready"
    assert server.stop() == 0


def test_a_signal_while_models_load_is_not_lost(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """From the moment the port answers, a change that is asked for is applied."""
    file = File(tmp_path / "a.yaml", upstream.url)
    server = serve(file=file.path)
    wait_until(lambda: server.state() is not None, 60, server.log_tail)
    file.content["models"][0]["aliases"] = ["n0"]
    file.write()
    _send_hup(server)
    wait_until(lambda: server.post(CHAT, chat_bodies("n0")[0])[0] == 200, 30, server.log_tail)

    assert server.stop() == 0


RELOAD = """
import asyncio, sys
from pathlib import Path
from appliance.config import load
from appliance.models.manager import ModelManager
from appliance.server.reload import ConfigReload

async def main():
    file = Path(sys.argv[1])
    manager = ModelManager((loaded := load(file)).config)

    def apply(new):
        if new.config.server.drain_seconds == 7:
            raise RuntimeError("out of luck")

    reload = ConfigReload(loaded, manager, apply)
    reload.start()
    for seconds, error in (7, True), (8, False):
        file.write_text(file.read_text().replace(f": {seconds - 1}", f": {seconds}"))
        reload.request()
        async with asyncio.timeout(20):
            while (manager.config_status.error is not None) != error:
                await asyncio.sleep(0.05)
        print(manager.config_status.error)
    await reload.close()

asyncio.run(main())
"""


def test_an_unexpected_error_is_shown_and_later_files_are_read(tmp_path: Path) -> None:
    """A config that is valid, but cannot be applied because of a fault of ours, does not end reloads."""
    file = File(tmp_path / "a.yaml", "http://127.0.0.1:9")
    file.write(server={"drain_seconds": 6})

    result = subprocess.run([sys.executable, "-c", RELOAD, str(file.path)], capture_output=True, text=True, check=True)

    assert result.stdout.splitlines()[-2:] == [
        f"{file.path}: not applied: unexpected RuntimeError: out of luck",
        "None",
    ]
    assert "config.reload_crashed" in result.stderr
