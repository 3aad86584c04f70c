"""Objects that clients store: whole files, owners, ids, expiry, the limit of bytes, several processes."""

from __future__ import annotations

import multiprocessing
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.core.errors import RequestError
from appliance.core.memory_directory import memory_directory
from appliance.core.stored_objects import ObjectKey, StoredObjects, StoreUnavailableError, new_object_id

# An object with one small file takes two blocks.
SMALL = 8192


def store(root: Path, *, keep_seconds: float = 60, max_bytes: int = 1 << 20) -> StoredObjects:
    """Return an open store in a directory."""
    objects = StoredObjects(root / "store", keep_seconds=keep_seconds, max_bytes=max_bytes)
    objects.open()
    return objects


def key(owner: str = "team/a") -> ObjectKey:
    """Return a new key."""
    return ObjectKey(owner, new_object_id("resp_"))


def age(root: Path, each: ObjectKey, seconds: float) -> None:
    """Make an object older."""
    (path,) = root.glob(f"store/*/{each.id}")
    changed = path.stat().st_mtime - seconds
    os.utime(path, (changed, changed))


def test_what_was_written_is_read_by_the_next_process(tmp_path: Path) -> None:
    """An object has an owner, an id and files."""
    first = key()
    assert store(tmp_path).write(first, "a.json", b"1")

    objects = store(tmp_path)

    assert objects.read(first, "a.json") == b"1"
    assert objects.keys("resp_", "team/a") == [first]
    assert objects.usage().objects == 1


def test_an_object_of_another_owner_does_not_exist(tmp_path: Path) -> None:
    """Owners cannot read or delete each other's objects, and no owner is one of its own."""
    objects, first = store(tmp_path), key("")
    objects.write(first, "a", b"1")

    for owner in ("a", "..", "%"):
        other = ObjectKey(owner, first.id)
        assert objects.read(other, "a") is None
        assert not objects.delete(other)
        assert objects.keys("resp_", owner) == []


@pytest.mark.parametrize("name", ["", "..", "../a/resp_1", "resp_%2e", "resp_" + "g" * 32, "resp_" + "0" * 33, "a\n"])
def test_an_id_that_is_not_ours_is_no_name_of_a_file(tmp_path: Path, name: str) -> None:
    """Ids from clients never leave the directory."""
    objects, each = store(tmp_path), ObjectKey("", name)

    assert objects.read(each, "usage") is None
    assert objects.path(each) is None
    assert not objects.delete(each)


def test_only_this_user_may_enter(tmp_path: Path) -> None:
    """Directories have mode 0700, files 0600."""
    objects, first = store(tmp_path), key()
    objects.write(first, "a", b"1")
    path = objects.path(first)
    assert path is not None

    directories = (path, path.parent, path.parent.parent)
    assert {stat.S_IMODE(each.stat().st_mode) for each in directories} == {0o700}
    assert stat.S_IMODE((path / "a").stat().st_mode) == 0o600


def test_a_file_is_written_once(tmp_path: Path) -> None:
    """Of those who finish an object, the first wins."""
    objects, first = store(tmp_path), key()
    objects.write(first, "a", b"1")

    assert [objects.write_once(first, "final", each) for each in (b"2", b"3")] == [True, False]
    assert objects.read(first, "final") == b"2"


def test_a_deleted_object_is_not_made_again(tmp_path: Path) -> None:
    """Whoever still works on it writes nothing."""
    objects, first = store(tmp_path), key()
    objects.write(first, "a", b"1")

    assert objects.delete(first)

    assert not objects.write(first, "a", b"1", must_exist=True)
    assert not objects.write_once(first, "a", b"1")
    assert not objects.append(first, "a", b"1")
    assert objects.usage().objects == 0


def test_objects_expire(tmp_path: Path) -> None:
    """An object that is too old cannot be read, and the next sweep removes it."""
    objects, old, young = store(tmp_path), key(), key()
    for each in (old, young):
        objects.write(each, "a", b"1")
    age(tmp_path, old, 61)

    assert objects.read(old, "a") is None
    assert objects.keys("resp_") == [young]
    objects.sweep()
    assert not list(tmp_path.glob(f"store/*/{old.id}"))
    assert objects.usage().objects == 1


def test_a_full_store_loses_its_oldest_finished_objects(tmp_path: Path) -> None:
    """What is unfinished stays."""
    objects = store(tmp_path, max_bytes=8 * SMALL)
    keys = [key(owner) for owner in "abcdefgh"]
    for number, each in enumerate(keys):
        objects.write(each, "a", b"1")
        age(tmp_path, each, 10 - number)
    with objects.claim(keys[0], is_new=True) or pytest.fail("nobody else claims it"):
        age(tmp_path, keys[0], 1)

        assert objects.write(key(), "a", b"1")

    left = {each.owner for each in objects.keys("resp_")}
    assert "b" not in left
    assert {"a", "h", "team/a"} <= left
    assert objects.usage().bytes <= objects.max_bytes


def test_an_object_that_cannot_fit_removes_no_other(tmp_path: Path) -> None:
    """One that is larger than the store is refused before others are removed for it."""
    objects, first = store(tmp_path, max_bytes=8 * SMALL), key()
    objects.write(first, "a", b"1")

    with pytest.raises(RequestError) as error:
        objects.write(key(), "a", bytes(9 * SMALL))

    assert error.value.status == 413
    assert objects.keys("resp_") == [first]


def test_the_claim_of_a_process_that_died_can_be_taken(tmp_path: Path) -> None:
    """Unfinished objects are found, and each is taken by one process."""
    objects, first = store(tmp_path), key()
    objects.write(first, "a", b"1")
    claim = objects.claim(first, is_new=True)
    assert claim is not None
    assert objects.claim(first, is_new=False) is None
    claim.close()

    assert objects.unfinished() == [first]
    again = objects.claim(first, is_new=False)
    assert again is not None
    objects.finish(first, again)
    assert objects.unfinished() == []
    assert objects.claim(first, is_new=False) is None


def test_only_claims_that_nobody_holds_are_swept(tmp_path: Path) -> None:
    """A claim may come before its object; one whose object is gone is removed."""
    objects, coming, gone = store(tmp_path), key(), key()
    claim = objects.claim(coming, is_new=True)
    (objects.claim(gone, is_new=True) or pytest.fail("nobody else claims it")).close()

    objects.sweep()

    assert claim is not None
    assert objects.unfinished() == [coming]
    objects.finish(coming, claim)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_disk_is_503_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The error names the reason, and not the path."""
    objects, first = store(tmp_path), key()

    with largest_file(100), pytest.raises(StoreUnavailableError, match="File too large") as error:
        objects.write(first, "a", bytes(1000))

    assert error.value.status == 503
    assert str(tmp_path) not in str(error.value)
    assert objects.read(first, "a") is None
    assert objects.usage().objects == 0


def fill(root: Path, owner: str) -> None:
    """Write objects; more than fit."""
    objects = StoredObjects(root / "store", keep_seconds=60, max_bytes=20 * SMALL, is_durable=False)
    for _ in range(40):
        objects.write(key(owner), "a", b"1")


def test_several_processes_share_the_limit(tmp_path: Path) -> None:
    """The count of bytes is the disk's, whoever writes."""
    objects = store(tmp_path, max_bytes=20 * SMALL)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path, owner)) for owner in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    counted = objects.usage()
    objects.sweep()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert objects.usage() == counted
    assert 10 <= counted.objects <= 20


def test_a_directory_in_memory_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed server left is removed by the next one; that of a running server stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned = tmp_path / "appliance-test-1"
    abandoned.mkdir()
    (abandoned / "alive").touch()
    # More than any memory.
    size = 1 << 50
    with memory_directory("test", size) as first, memory_directory("test", size) as second:
        assert first.parent == second.parent == tmp_path
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        assert not abandoned.exists()
    assert not first.exists()
    assert not second.exists()
