"""KServe's `Storage` over ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.errors import ArtifactNotFoundError
from appliance.kserve import Storage


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a pickled model."""
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/model.joblib").write_bytes(b"1")
    (tmp_path / "model/sub/labels.txt").write_text("a")
    return tmp_path / "model"


def test_files_are_copied_to_the_directory(model: Path, tmp_path: Path) -> None:
    """With their directories."""
    out = Storage.download(f"file://{model}", str(tmp_path / "out"))

    assert out == str(tmp_path / "out")
    assert sorted(str(each.relative_to(out)) for each in Path(out).rglob("*.*")) == ["model.joblib", "sub/labels.txt"]


def test_a_file_is_copied_into_the_directory(model: Path, tmp_path: Path) -> None:
    """Under its name."""
    out = Storage.download(str(model / "model.joblib"), str(tmp_path / "out"))

    assert (Path(out) / "model.joblib").read_bytes() == b"1"


async def test_a_download_works_where_an_event_loop_runs(model: Path) -> None:
    """Without a directory it is the local one."""
    assert (Path(Storage.download(f"file://{model}")) / "model.joblib").exists()


def test_nothing_at_the_uri_is_an_error(tmp_path: Path) -> None:
    """Which names it."""
    with pytest.raises(ArtifactNotFoundError, match="nothing"):
        Storage.download(f"file://{tmp_path}/nothing")
