"""A fetch that ended before its end, and the one that goes on where it was."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from storage.fake_store import FakeStore, Fault
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig, StorageConfig, TransferConfig
from appliance.core.disk import OnProgress, ignore_progress
from appliance.core.errors import AccessDeniedError, ArtifactCorruptError, NoSpaceError
from appliance.storage import Cache, verify
from appliance.storage.cache import invalidate
from appliance.storage.filesystems.base import Body, RemoteFile
from appliance.storage.materialize import fetch
from appliance.storage.resolution import resolve

WEIGHTS = os.urandom(4_000_000)
FILES = {"a.safetensors": WEIGHTS, "b.safetensors": os.urandom(1_000_000), "config.json": b"{}"}
SIZE = sum(map(len, FILES.values()))
JOURNAL = "appliance-journal.jsonl"


def fetch_model(store: FakeStore, cache: Cache, on_progress: OnProgress = ignore_progress) -> Path:
    """Fetch all that a store has, without a second try."""
    transfer = TransferConfig(stall_seconds=5, retries=0, parallel=2)
    settings = GlobalStorageConfig(cache_dir=cache.root, transfer=transfer)
    return fetch(store, resolve(StorageConfig(uri="fake://model"), settings), on_progress)


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class BreakOff(FakeStore):
    """A store that refuses everything once it has served so many bytes."""

    limit = 3_000_000

    def read(self, file: RemoteFile, start: int, end: int) -> AbstractAsyncContextManager[Body]:
        self.always = Fault("deny" if self.sent_bytes > self.limit else "none")
        return super().read(file, start, end)


def break_off(cache: Cache, files: Mapping[str, bytes] = FILES) -> Path:
    """Leave a fetch unfinished, and return where its files are."""
    with pytest.raises(AccessDeniedError):
        fetch_model(BreakOff(dict(files)), cache)
    (unfinished,) = (cache.root / ".unfinished").iterdir()
    return unfinished / "files"


def test_a_fetch_that_failed_goes_on_where_it_was(cache: Cache) -> None:
    """Each byte is fetched once, over both."""
    break_off(cache)
    store = FakeStore(FILES)

    assert contents(fetch_model(store, cache)) == FILES
    assert store.sent_bytes < SIZE - BreakOff.limit + 300_000
    assert not list((cache.root / ".unfinished").iterdir())


def test_progress_begins_with_what_is_there(cache: Cache) -> None:
    """Whoever watches the bar sees that nothing was lost."""
    break_off(cache)
    reports: list[int] = []

    fetch_model(FakeStore(FILES), cache, lambda done, total: reports.append(done) if total else None)
    assert next(filter(None, reports)) > 2_500_000


def test_an_unfinished_artifact_is_never_taken_for_a_whole_one(cache: Cache) -> None:
    """It lies aside, without a marker, also when its files have their full size."""
    unfinished = break_off(cache)

    assert not list(unfinished.parent.glob("appliance-manifest.json"))
    assert not [path for path in cache.root.iterdir() if not path.name.startswith(".")]


def test_only_a_file_that_changed_is_fetched_anew(cache: Cache) -> None:
    """What came of its old version is removed, and nothing of it gets into the new one."""
    break_off(cache)
    changed = FILES | {"a.safetensors": os.urandom(500_000)}
    store = FakeStore(changed)

    assert contents(fetch_model(store, cache)) == changed
    assert [asked for asked in store.requested if asked[0] == "a.safetensors"]
    assert store.sent_bytes <= SIZE - len(WEIGHTS) + 500_000


def test_a_file_that_is_gone_from_the_store_is_removed(cache: Cache) -> None:
    """What an earlier listing had is not sealed into the artifact of this one, be its name a directory now."""
    break_off(cache, FILES | {"config.json": b"{}", "old/deep.txt": b"x", "other": b"y"})
    now = FILES | {"old": b"was a directory", "other/x": b"was a file"}

    assert contents(fetch_model(FakeStore(now), cache)) == now


def test_without_versions_and_digests_nothing_is_joined(cache: Cache) -> None:
    """Where a store cannot say that a file is the same, its bytes are all fetched again."""
    one = {"a.safetensors": WEIGHTS}
    with pytest.raises(AccessDeniedError):
        fetch_model(BreakOff(one, lambda _: {}, has_versions=False), cache)
    store = FakeStore(one, lambda _: {}, has_versions=False)

    assert contents(fetch_model(store, cache)) == one
    assert store.sent_bytes == len(WEIGHTS)


def lose(unfinished: Path) -> None:
    (unfinished / "a.safetensors").unlink()


def damage(unfinished: Path) -> None:
    with (unfinished / "a.safetensors").open("r+b") as file:
        file.write(b"\0" * 100)


def shorten(unfinished: Path) -> None:
    os.truncate(unfinished / "a.safetensors", 1000)


def lengthen(unfinished: Path) -> None:
    os.truncate(unfinished / "a.safetensors", 5_000_000)


def tear_journal(unfinished: Path) -> None:
    journal = unfinished.parent / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])


def garble_journal(unfinished: Path) -> None:
    journal = unfinished.parent / JOURNAL
    journal.write_bytes(b'{"a": 1}\n[]\n["x", "y", "z", 0]\n\xff\n' + journal.read_bytes())


def lose_journal(unfinished: Path) -> None:
    (unfinished.parent / JOURNAL).unlink()


def inflate_journal(unfinished: Path) -> None:
    journal = unfinished.parent / JOURNAL
    mark = journal.read_text().split('"')[1]
    journal.write_text(f'["{mark}", 0, 4000000, 0]\n["{mark}", -5, 10, 0]\n["{mark}", 0, 99999999, 7]\n')


@pytest.mark.parametrize(
    "harm", [lose, damage, shorten, lengthen, tear_journal, garble_journal, lose_journal, inflate_journal]
)
def test_the_journal_is_believed_only_where_the_disk_agrees(cache: Cache, harm: Callable[[Path], None]) -> None:
    """Whatever a power cut or a bad disk left, the artifact is right in the end."""
    harm(break_off(cache))

    assert contents(fetch_model(FakeStore(FILES), cache)) == FILES


def test_of_a_damaged_artifact_only_the_damage_is_fetched(cache: Cache) -> None:
    """
    An artifact keeps its journal, so that a file that went missing and a range that went bad cost no more than that.
    """
    files = fetch_model(FakeStore(FILES), cache)
    (files / "b.safetensors").unlink()
    damage(files)
    store = FakeStore(FILES)

    with capture_logs() as events:
        assert contents(fetch_model(store, cache)) == FILES
    assert events[0]["event"] == "artifact.damaged"
    assert events[0]["files"] == ["b.safetensors"]
    assert store.sent_bytes < len(FILES["b.safetensors"]) + 200_000


def test_what_an_earlier_state_had_is_not_fetched_again(cache: Cache) -> None:
    """
    When one file of a place changes, the others come from the artifact of before, also where no store lists SHA-256.
    """
    old = fetch_model(FakeStore(FILES, lambda _: {}), cache)
    now = FILES | {"b.safetensors": os.urandom(200_000)}
    store = FakeStore(now, lambda _: {})

    new = fetch_model(store, cache)
    assert contents(new) == now
    assert contents(old) == FILES
    assert {name for name, _, _ in store.requested} == {"b.safetensors", "config.json"}


def test_a_flipped_bit_costs_one_range(cache: Cache) -> None:
    """What a reading of every byte finds is fetched again, and nothing else."""
    files = fetch_model(FakeStore(FILES), cache)
    damage(files)
    with pytest.raises(ArtifactCorruptError, match=r"a\.safetensors"):
        verify(files)
    invalidate(files)
    store = FakeStore(FILES)

    verify(fetch_model(store, cache))
    assert 0 < store.sent_bytes < 200_000


def test_a_file_that_others_share_is_replaced_and_not_written_to(cache: Cache, tmp_path: Path) -> None:
    """A hard link to a damaged file keeps what it has, while the artifact gets what it should have."""
    files = fetch_model(FakeStore(FILES), cache)
    damage(files)
    (files / "config.json").unlink()
    os.link(files / "a.safetensors", tmp_path / "link")
    before = (tmp_path / "link").read_bytes()

    assert contents(fetch_model(FakeStore(FILES), cache)) == FILES
    assert (tmp_path / "link").read_bytes() == before


def test_what_nobody_came_back_for_is_removed(cache: Cache) -> None:
    """Unfinished artifacts of other models are kept for a week, and one's own however long it took to come back."""
    own = break_off(cache).parent
    os.utime(own, (0, 0))
    stale, fresh = (cache.root / ".unfinished" / name for name in ("stale", "fresh"))
    for path in (stale, fresh):
        (path / "files").mkdir(parents=True)
    os.utime(stale, (0, time.time() - 8 * 24 * 3600))

    store = FakeStore(FILES)
    fetch_model(store, cache)
    assert store.sent_bytes < SIZE
    assert not stale.exists()
    assert fresh.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_meanwhile_is_said_and_nothing_is_lost(small_disk: Path) -> None:
    """Others write, too: the error names the remedy, and with some space freed the fetch goes on."""
    cache = Cache.at(small_disk / "cache")
    (small_disk / "others").write_bytes(bytes(2 << 20))

    def take_the_rest(done: int, total: int | None) -> None:
        if done and not (small_disk / "more").exists():
            (small_disk / "more").write_bytes(bytes(4 << 20))

    with pytest.raises(
        NoSpaceError,
        match=r"^fake://model: /.*: No space left on device; free some space, or point storage\.cache_dir",
    ):
        fetch_model(FakeStore(FILES, always=Fault("slow")), cache, take_the_rest)
    assert not [path for path in cache.root.iterdir() if not path.name.startswith(".")]

    (small_disk / "more").unlink()
    store = FakeStore(FILES)
    assert contents(fetch_model(store, cache)) == FILES
    assert store.sent_bytes < SIZE
