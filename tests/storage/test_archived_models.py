"""A URI that names one archive: it becomes the files in it, by the rules for files of any place."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zstandard
from storage.fake_store import FakeStore, Fault

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError, StorageError
from appliance.storage import Cache
from appliance.storage.filesystems.base import Listing
from appliance.storage.materialize import fetch
from appliance.storage.resolution import resolve

MODEL = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 2000, "pytorch_model.bin": b"p", ".dot": b""}


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


PACKERS: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "model.zip": _zip,
    "model.tar": _tar,
    "model.tar.gz": lambda files: gzip.compress(_tar(files)),
    "model.tgz": lambda files: gzip.compress(_tar(files)),
    "model.tar.zst": lambda files: zstandard.ZstdCompressor().compress(_tar(files)),
}


class OneFile(FakeStore):
    """A store whose URI names one file."""

    async def list(self) -> Listing:
        listing = await super().list()
        return Listing(listing.uri, listing.files, is_file=True)


def _bring(cache: Cache, store: FakeStore, **storage: object) -> dict[str, bytes]:
    config = StorageConfig.model_validate({"uri": "fake://place", **storage})
    settings = GlobalStorageConfig.model_validate(
        {"cache_dir": cache.root, "transfer": {"retries": 1, "parallel": 1, "chunk_bytes": 262_144}}
    )
    path = fetch(store, resolve(config, settings), lambda *_: None)
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("inside", ["", "model-1.0/"])
def test_an_archive_becomes_its_files(cache: Cache, name: str, inside: str) -> None:
    """In a directory of its own or not; weights for other programs are left out, and the archive itself is not kept."""
    packed = PACKERS[name]({f"{inside}{each}": data for each, data in MODEL.items()})

    assert _bring(cache, OneFile({name: packed})) == {
        each: data for each, data in MODEL.items() if each != "pytorch_model.bin"
    }
    assert [path for path in cache.root.rglob("*") if path.name in {name, "packed"}] == []


def test_the_rules_for_files_hold_inside(cache: Cache) -> None:
    """include and exclude choose among the members, anew when they change; pickles alone are refused unless allowed."""
    store, pickled = OneFile({"a.zip": _zip(MODEL)}), OneFile({"b.zip": _zip({"x.pt": b"p"})})

    assert set(_bring(cache, store, include=["*.json"])) == {"config.json"}
    assert set(_bring(cache, store, exclude=["*.json", "*.bin"])) == {"model.safetensors", ".dot"}
    with pytest.raises(StorageError, match="allow_pickle: true"):
        _bring(cache, pickled)
    assert _bring(cache, pickled, allow_pickle=True) == {"x.pt": b"p"}


@pytest.mark.parametrize("name", ["model.zip", "model.tar.gz"])
def test_a_hostile_archive_leaves_nothing(cache: Cache, tmp_path: Path, name: str) -> None:
    """
    A member that leaves the target is refused, and so the archive; nothing lies anywhere afterwards that is served.
    """
    with pytest.raises(ArtifactCorruptError, match="leads out of its directory; it is refused"):
        _bring(cache, OneFile({name: PACKERS[name]({"../../evil": b"x"})}))
    assert list(tmp_path.rglob("evil")) == []
    assert [path for path in cache.root.glob("*") if not path.name.startswith(".")] == []


def test_a_fetch_of_an_archive_goes_on_where_it_broke(cache: Cache) -> None:
    """What came before the store failed is not asked for again."""
    packed = _zip({"model.safetensors": bytes(range(256)) * 8000})
    with pytest.raises(StorageError):
        _bring(cache, OneFile({"a.zip": packed}, faults=deque([Fault()]), always=Fault("deny")))
    second = OneFile({"a.zip": packed})

    assert set(_bring(cache, second)) == {"model.safetensors"}
    assert 0 < sum(end - start for _, start, end in second.requested) < len(packed)


def test_an_archive_among_other_files_is_a_file(cache: Cache) -> None:
    """Only a URI that names the archive itself asks for what is in it."""
    packed = _zip(MODEL)

    assert _bring(cache, FakeStore({"data.zip": packed, "config.json": b"{}"}))["data.zip"] == packed
