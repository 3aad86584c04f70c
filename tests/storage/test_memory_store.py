"""`memory://`: files of this process, fetched like any others."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path

import pytest
from storage.memory_store import DIRECTORIES

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.disk import OnProgress
from appliance.core.errors import ArtifactChangedError, ArtifactNotFoundError
from appliance.storage import Cache, materialize

FILES = {"model/config.json": b"{}", "model/.hidden": b"h", "model/sub/empty": b"", "model-v2/config.json": b"{2}"}


@pytest.fixture
def place() -> Iterator[MutableMapping[str, bytes]]:
    """A place with two models, one named like the beginning of the other."""
    DIRECTORIES["here"] = dict(FILES)
    yield DIRECTORIES["here"]
    del DIRECTORIES["here"]


def fetch_model(uri: str, cache: Cache, report: OnProgress = lambda *_: None) -> Path:
    """Materialize a URI."""
    return materialize(StorageConfig(uri=uri), GlobalStorageConfig(cache_dir=cache.root), report)


@pytest.mark.usefixtures("place")
def test_a_directory_is_brought_without_its_neighbours(cache: Cache) -> None:
    """Names are compared by whole segments, and empty files and dotfiles come along."""
    path = fetch_model("memory://here/model", cache)

    found = {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    assert found == {"config.json": b"{}", ".hidden": b"h", "sub/empty": b""}


@pytest.mark.usefixtures("place")
def test_one_file_is_brought_as_a_file(cache: Cache) -> None:
    """Where the URI names a file, so does the path."""
    path = fetch_model("memory://here/model-v2/config.json", cache)

    assert path.name == "config.json"
    assert path.read_bytes() == b"{2}"


@pytest.mark.parametrize("uri", ["memory://here/nothing", "memory://here/mod", "memory://nowhere"])
@pytest.mark.usefixtures("place")
def test_what_is_not_there_is_said(cache: Cache, uri: str) -> None:
    """A part of a name is no name."""
    with pytest.raises(ArtifactNotFoundError, match=f"{uri}: nothing found"):
        fetch_model(uri, cache)


def test_a_file_that_changes_meanwhile_is_refused(cache: Cache, place: MutableMapping[str, bytes]) -> None:
    """Two versions are never joined."""

    def change(done: int, total: int | None) -> None:
        if total is not None:
            place["model/config.json"] = b"{3}"

    with pytest.raises(ArtifactChangedError, match=r"config\.json: changed during the download"):
        fetch_model("memory://here/model", cache, change)
