"""`appliance cache`: what is in it, whether it is whole, and what goes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from server_launcher import run_appliance
from storage.fake_hub import Hub
from storage.memory_store import DIRECTORIES

from appliance.cli.cache import cache as commands
from appliance.config import load
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage import Cache, materialize

DAY = 86400
WEIGHTS = b"weights!" * 20_000


@pytest.fixture
def places() -> Iterator[None]:
    """Two models that have their weights in common."""
    DIRECTORIES["old"] = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    DIRECTORIES["new"] = {"config.json": b"[]", "model.safetensors": WEIGHTS}
    yield
    del DIRECTORIES["old"], DIRECTORIES["new"]


@pytest.fixture
def run(cache: Cache) -> Callable[..., Result]:
    """Runs `appliance cache` on the cache of this test."""
    return lambda command, *words: CliRunner().invoke(commands, [command, "--dir", str(cache.root), *map(str, words)])


def fetch_model(cache: Cache, name: str, days: float = 0, uri: str = "memory://{}") -> Path:
    """Fetch the model of a name, as if so many days ago."""
    settings = GlobalStorageConfig(cache_dir=cache.root)
    artifact = materialize(StorageConfig(uri=uri.format(name)), settings, lambda *_: None).parent
    when = time.time() - days * DAY
    os.utime(artifact / "appliance-manifest.json", (when, when))
    return artifact


Run = Callable[..., Result]


def test_list_shows_size_age_and_source(cache: Cache, places: None, run: Run) -> None:
    """One line each, the last used first; files that are shared count once on the disk."""
    fetch_model(cache, "old", days=40)
    fetch_model(cache, "new")

    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["size", "files", "used", "from", "in"]
    assert lines[1].split()[:7] == ["160.0", "kB", "2", "0s", "ago", "memory://new", lines[1].split()[-1]]
    assert lines[2].split()[:6] == ["160.0", "kB", "2", "5w", "ago", "memory://old"]
    assert lines[3].startswith(f"{cache.root}: 2 artifacts, 161")


def test_an_empty_cache_is_no_error(cache: Cache, run: Run) -> None:
    """There is nothing to list, verify or prune."""
    assert [run(verb).exit_code for verb in ("list", "verify", "prune")] == [0, 0, 0]
    assert run("list").stdout == f"{cache.root}: 0 artifacts, 0 bytes on the disk\n"


def test_models_share_what_they_have_in_common(cache: Cache, places: None) -> None:
    """The same weights are one file on the disk, also of two revisions of a model; other files are each its own."""
    old, new = fetch_model(cache, "old"), fetch_model(cache, "new")

    assert (old / "files/model.safetensors").samefile(new / "files/model.safetensors")
    assert not (old / "files/config.json").samefile(new / "files/config.json")


def test_verify_names_damaged_files(cache: Cache, places: None) -> None:
    """A byte that changed under the same size is found, with exit code 16; a whole cache is 0."""
    artifact = fetch_model(cache, "old")
    command = ("cache", "verify", "--dir", cache.root)
    good = run_appliance(*command)
    (artifact / "files/config.json").write_bytes(b"[]")
    bad = run_appliance(*command)

    assert (good.returncode, good.stdout) == (0, f"{artifact.name}: good\n")
    assert (bad.returncode, bad.stdout) == (16, f"{artifact.name}: damaged: config.json\n")
    assert "--remove" in bad.stderr


def test_a_manifest_that_cannot_be_read_is_damage(cache: Cache, places: None, run: Run) -> None:
    """An artifact is not passed over because nobody knows any more what it was."""
    artifact = fetch_model(cache, "old")
    (artifact / "appliance-manifest.json").write_text("{}")

    assert f"{artifact.name}: damaged: appliance-manifest.json" in run("verify").stdout


def test_what_is_damaged_is_removed_and_fetched_again(cache: Cache, places: None, run: Run) -> None:
    """Also where two models share the damaged file; afterwards both are whole."""
    old, new = fetch_model(cache, "old"), fetch_model(cache, "new")
    with (old / "files/model.safetensors").open("r+b") as file:
        file.write(b"W")

    done = run("verify", "--remove")
    assert (done.exit_code, done.stdout.count("damaged: model.safetensors")) == (0, 2)
    assert (old.exists(), new.exists()) == (False, False)
    assert (fetch_model(cache, "old") / "files/model.safetensors").read_bytes() == WEIGHTS
    assert run("verify").exit_code == 0


def test_prune_alone_removes_only_what_failed_fetches_left(cache: Cache, places: None, run: Run) -> None:
    """Nobody loses a model by typing too little."""
    kept = fetch_model(cache, "old", days=400)
    for name in (f"{kept.name}.incomplete-0123abcd", ".unfinished/dead-0123456789ab"):
        (cache.root / name / "files").mkdir(parents=True)
        (cache.root / name / "files/half").write_bytes(b"x")

    done = run("prune")
    assert done.exit_code == 0
    assert kept.exists()
    assert not (cache.root / f"{kept.name}.incomplete-0123abcd").exists()
    assert list((cache.root / ".unfinished").iterdir()) == []


def test_prune_by_age(cache: Cache, places: None, run: Run) -> None:
    """By the time since the last use; a dry run only says so."""
    old, new = fetch_model(cache, "old", days=40), fetch_model(cache, "new", days=20)

    dry = run("prune", "--older-than", "30d", "--dry-run")
    assert f"{old.name}: 160.0 kB, used 5w ago: would be removed" in dry.stdout
    assert old.exists()
    done = run("prune", "--older-than", "30d")
    assert f"{old.name}: 160.0 kB, used 5w ago: removed" in done.stdout
    assert (old.exists(), new.exists()) == (False, True)


def test_prune_by_size_removes_what_was_not_used_for_longest(cache: Cache, places: None, run: Run) -> None:
    """Until what is left fits."""
    old, new = fetch_model(cache, "old", days=2), fetch_model(cache, "new", days=1)

    assert run("prune", "--max-size", "1MB").stdout == "0 bytes removed\n"
    run("prune", "--max-size", "200kB")
    assert (old.exists(), new.exists()) == (False, True)


ON_HUB = "hf://owner/{}"


@pytest.fixture
def models_on_hub(hub: Hub) -> None:
    """The two models on a hub: a config cannot name `memory://`."""
    for name, config in (("old", b"{}"), ("new", b"[]")):
        hub.repository(f"owner/{name}").commit({"config.json": config, "model.safetensors": WEIGHTS})


def test_prune_keeps_what_a_config_names(cache: Cache, models_on_hub: None, run: Run, tmp_path: Path) -> None:
    """And removes all the rest, or of the rest what is old."""
    old, new = fetch_model(cache, "old", 2, ON_HUB), fetch_model(cache, "new", 1, ON_HUB)
    file = tmp_path / "config.yaml"
    file.write_text(
        json.dumps({"models": [{"name": "a", "class": "generative", "storage": {"uri": ON_HUB.format("old")}}]})
    )

    run("prune", "--keep", file, "--older-than", "30d")
    assert (old.exists(), new.exists()) == (True, True)
    run("prune", "--keep", file)
    assert (old.exists(), new.exists()) == (True, False)
    assert [blob.stat().st_nlink for blob in (cache.root / ".blobs").iterdir()] == [2]


def test_what_was_shared_is_freed_with_its_last_artifact(cache: Cache, places: None, run: Run) -> None:
    """Nothing of a model stays on the disk once all that had it are gone."""
    fetch_model(cache, "old")
    fetch_model(cache, "new")

    run("prune", "--older-than", "0s")
    assert [path for path in cache.root.rglob("*") if path.is_file() and path.stat().st_size > 1000] == []


HOLDER = """
import sys
from pathlib import Path
from appliance.storage.cache import hold
held = hold(Path(sys.argv[1]) / "files")
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_process_serves_stays(
    cache: Cache, places: None, run: Run, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """An artifact in use is not removed, and becomes free when its user dies, however it dies."""
    artifact = fetch_model(cache, "old")
    holder = start(HOLDER, artifact)
    assert holder.stdout
    holder.stdout.readline()

    assert "in use, and not removed" in run("prune", "--older-than", "0s").stdout
    assert artifact.exists()
    holder.kill()
    holder.wait()
    run("prune", "--older-than", "0s")
    assert not artifact.exists()


WORKER = """
import sys
from pathlib import Path
from appliance.core.file_lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), lambda *_: None):
    print("working", flush=True)
    sys.stdin.read()
"""


def test_what_a_process_works_on_stays(cache: Cache, run: Run, start: Callable[..., subprocess.Popen[str]]) -> None:
    """A fetch under way in another process is no dead one."""
    work = cache.root / ".unfinished/model-0123456789ab"
    (work / "files").mkdir(parents=True)
    (cache.root / ".locks").mkdir()
    worker = start(WORKER, cache.root / ".locks" / f"{work.name}.lock")
    assert worker.stdout
    worker.stdout.readline()

    assert "in use, and not removed" in run("prune").stdout
    assert work.exists()


@pytest.mark.parametrize(("option", "value"), [("--older-than", "soon"), ("--max-size", "big"), ("--older-than", "30")])
def test_a_limit_that_makes_no_sense_is_refused(run: Run, option: str, value: str) -> None:
    """With an example of one that does."""
    done = run("prune", option, value)

    assert done.exit_code == 2
    assert "write one such as" in done.stderr


def test_the_cache_of_a_config_is_found_by_itself(cache: Cache, models_on_hub: None, tmp_path: Path) -> None:
    """`prune --keep FILE` goes to the cache that FILE names."""
    old, new = fetch_model(cache, "old", 0, ON_HUB), fetch_model(cache, "new", 0, ON_HUB)
    model = {"name": "a", "class": "generative", "storage": {"uri": ON_HUB.format("old")}}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"models": [model], "storage": {"cache_dir": str(cache.root)}}))
    assert load(file)

    CliRunner().invoke(commands, ["prune", "--keep", str(file)], catch_exceptions=False)
    assert (old.exists(), new.exists()) == (True, False)
