"""Files that artifacts have in common: fetched once, kept once, and never changed through one another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from storage.fake_store import FakeStore

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage import Cache
from appliance.storage.blobs import Blobs
from appliance.storage.materialize import fetch
from appliance.storage.resolution import resolve

WEIGHTS = bytes(range(256)) * 4000


def _fetch(store: FakeStore, cache: Cache, uri: str = "fake://place") -> Path:
    settings = GlobalStorageConfig(cache_dir=cache.root)
    return fetch(store, resolve(StorageConfig(uri=uri), settings), lambda *_: None)


def _read(store: FakeStore) -> int:
    """Bytes that were asked for."""
    return sum(end - start for _, start, end in store.requested)


def test_a_new_revision_fetches_only_what_changed(cache: Cache) -> None:
    """Where the store says the SHA-256 beforehand, the weights of the last revision are not fetched again."""
    old = _fetch(FakeStore({"config.json": b"{}", "model.safetensors": WEIGHTS}), cache)
    store = FakeStore({"config.json": b"[ ]", "model.safetensors": WEIGHTS})
    new = _fetch(store, cache)

    assert new != old
    assert (new / "model.safetensors").samefile(old / "model.safetensors")
    assert _read(store) == 3


def test_without_a_digest_beforehand_it_is_fetched_and_then_shared(cache: Cache) -> None:
    """The space is saved, if not the transfer."""
    files = {"a.txt": b"1", "model.safetensors": WEIGHTS}
    old = _fetch(FakeStore(files, digests=lambda _: {}, has_versions=False), cache)
    store = FakeStore(files | {"a.txt": b"22"}, digests=lambda _: {}, has_versions=False)
    new = _fetch(store, cache)

    assert (new / "model.safetensors").samefile(old / "model.safetensors")
    assert _read(store) == len(WEIGHTS) + 2


def test_a_damaged_file_is_not_shared_any_further(cache: Cache) -> None:
    """Every byte is read before another artifact gets a file: bad bytes are fetched anew."""
    old = _fetch(FakeStore({"a.txt": b"1", "model.safetensors": WEIGHTS}), cache)
    with (old / "model.safetensors").open("r+b") as file:
        file.write(b"bad")
    new = _fetch(FakeStore({"a.txt": b"22", "model.safetensors": WEIGHTS}), cache)

    assert (new / "model.safetensors").read_bytes() == WEIGHTS
    assert not (new / "model.safetensors").samefile(old / "model.safetensors")


def test_mending_one_artifact_leaves_the_others_alone(cache: Cache) -> None:
    """A file that is cut off is brought again, under its own name only, though another artifact shares it."""
    store = FakeStore({"a.txt": b"1", "model.safetensors": WEIGHTS})
    old = _fetch(store, cache)
    new = _fetch(FakeStore({"a.txt": b"22", "model.safetensors": WEIGHTS}), cache)
    (old / "a.txt").unlink()
    other = FakeStore({"a.txt": b"1", "model.safetensors": WEIGHTS})

    assert _fetch(other, cache) == old
    assert (old / "a.txt").read_bytes() == b"1"
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes() == WEIGHTS


def test_a_disk_without_hard_links_only_shares_nothing(tmp_path: Path) -> None:
    """Sharing is a saving: where a link cannot be made, files stay as they are, and nothing raises."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "weights").write_bytes(WEIGHTS)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    # A file in the way of the directory is as good as a disk that refuses.
    (tmp_path / "blobs").write_text("")
    blobs = Blobs(tmp_path / "blobs")

    blobs.share(files, {"weights": digest}, lambda *_: None)
    assert (files / "weights").read_bytes() == WEIGHTS
    assert not blobs.link(digest, len(WEIGHTS), tmp_path / "other", lambda *_: None)


def test_a_cache_on_a_read_only_volume_is_used_as_it_is(cache: Cache) -> None:
    """What is whole needs no writing, shared or not."""
    store = FakeStore({"model.safetensors": WEIGHTS})
    path = _fetch(store, cache)
    if os.geteuid() == 0:
        pytest.skip("permissions do not hold for this user")
    cache.root.chmod(0o555)

    assert _fetch(store, cache) == path
