"""`pvc://`: volumes by the names of their claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactNotFoundError, StorageError
from appliance.storage import materialize


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Mounted volumes: one with a model."""
    model = tmp_path / "pvc" / "claim" / "models" / "a b"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    return tmp_path / "pvc"


def fetch_model(uri: str, root: Path) -> Path:
    """Materialize a URI."""
    settings = GlobalStorageConfig(pvc_root=root, cache_dir=root.parent / "cache")
    return materialize(StorageConfig(uri=uri), settings, lambda *_: None)


@pytest.mark.parametrize("uri", ["pvc://claim/models/a%20b", "pvc://claim/models/a%20b/", "PVC://claim/models/a b"])
def test_what_lies_on_a_volume_is_used_in_place(root: Path, uri: str) -> None:
    """A directory of it, and not a copy."""
    assert fetch_model(uri, root) == root / "claim/models/a b"


def test_all_of_a_volume_can_be_a_model(root: Path) -> None:
    """Without a path."""
    assert fetch_model("pvc://claim", root) == root / "claim"


@pytest.mark.parametrize("uri", ["pvc://", "pvc:///x", "pvc://../x", "pvc://claim/../other", "pvc://claim/%2e%2e/x"])
def test_a_path_out_of_the_volume_is_refused(root: Path, uri: str) -> None:
    """As it is written."""
    with pytest.raises(StorageError, match="write pvc://NAME/PATH"):
        fetch_model(uri, root)


def test_a_link_out_of_the_volume_is_refused(root: Path) -> None:
    """Whoever fills a volume does not choose what else of this machine is read."""
    (root / "claim" / "link").symlink_to(root.parent)

    with pytest.raises(StorageError, match="a link leads out of the volume"):
        fetch_model("pvc://claim/link", root)


def test_a_link_within_the_volume_is_followed(root: Path) -> None:
    """As names of versions often are."""
    (root / "claim" / "latest").symlink_to("models")

    assert fetch_model("pvc://claim/latest", root).resolve() == root / "claim/models"


def test_a_volume_that_is_not_mounted_is_told(root: Path) -> None:
    """With those that are, or with where they are looked for."""
    with pytest.raises(ArtifactNotFoundError, match='did you mean "claim"'):
        fetch_model("pvc://claims/models", root)
    with pytest.raises(ArtifactNotFoundError, match=r"has no volumes; mount it at .*nowhere/claim, or set storage"):
        fetch_model("pvc://claim/models", root.parent / "nowhere")


def test_a_path_that_is_not_there_is_told(root: Path) -> None:
    """As for any other path."""
    with pytest.raises(ArtifactNotFoundError, match='did you mean "models"'):
        fetch_model("pvc://claim/model", root)


def test_pickles_on_a_volume_are_refused(root: Path) -> None:
    """As from any store."""
    (root / "claim/models/a b/model.pkl").write_bytes(b"pickle")

    with pytest.raises(StorageError, match=r"model\.pkl: pickled"):
        fetch_model("pvc://claim/models/a%20b", root)
