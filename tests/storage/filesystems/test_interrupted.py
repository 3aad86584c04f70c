"""A fetch that ends before its time, from every kind of store: by a kill, and by a full disk."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Iterator, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from faultproxy import Fault, FaultProxy
from storage.filesystems.conftest import WITHOUT_MOTO
from storage.store_servers import StoreServer, storage_at

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import NoSpaceError
from appliance.storage import materialize

FILES = {"model/config.json": b"{}", "model/model.safetensors": random.Random(2).randbytes(10_000_000)}
SIZE = sum(map(len, FILES.values()))
MIB = 1 << 20

# Small enough that twenty kills are soon done; of a smaller one, the smallest requests would be more than a twentieth.
SMALL = {"model/config.json": b"{}", "model/model.safetensors": random.Random(3).randbytes(4_000_000)}
SMALL_SIZE = sum(map(len, SMALL.values()))

# Chosen anew in each run, alike in all of its processes; the name of the test tells which they were.
OFFSETS = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).sample(
    range(SMALL_SIZE // 20, SMALL_SIZE * 19 // 20), 20
)
FEW = 1


def fetch(uri: str, settings: Mapping[str, object]) -> None:
    """What the process does that is killed."""
    materialize(storage_at(uri), GlobalStorageConfig.model_validate(settings), lambda *_: None)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    stores = [f"appliance.storage.filesystems.{name}" for name in ("s3", "gcs", "azure", "http", "huggingface")]
    context.set_forkserver_preload([__name__, "s3fs", "azure.storage.blob.aio", *stores])
    return context


@pytest.mark.parametrize("store_server", WITHOUT_MOTO, indirect=True)
@pytest.mark.parametrize(
    "offset", [*OFFSETS[:FEW], *(pytest.param(each, marks=pytest.mark.long) for each in OFFSETS[FEW:])]
)
def test_a_killed_fetch_goes_on(
    processes: ForkServerContext, store_server: StoreServer, root: str, proxy: FaultProxy, tmp_path: Path, offset: int
) -> None:
    """
    Killed when a random byte was sent, it is finished by the next one, and all that was sent is at most 1.05 times the
    model.
    """
    store_server.fill(root, SMALL)
    proxy.set(Fault("slow", rate=4 * MIB))
    uri, credentials = store_server.locate(f"{root}/model/", proxy.port)
    settings = {"cache_dir": str(tmp_path / "cache"), "credentials": credentials, "transfer": {"parallel": 2}}

    first = processes.Process(target=fetch, args=(uri, settings))
    first.start()
    while proxy.sent < offset and first.is_alive():
        time.sleep(0.001)
    first.kill()
    first.join()
    assert first.exitcode == -9
    second = processes.Process(target=fetch, args=(uri, settings))
    second.start()
    second.join()

    assert second.exitcode == 0
    assert proxy.sent < 1.05 * SMALL_SIZE + store_server.overhead_bytes
    (artifact,) = (path for path in (tmp_path / "cache").iterdir() if not path.name.startswith("."))
    assert {f"model/{path.name}": path.read_bytes() for path in (artifact / "files").iterdir()} == SMALL


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the model and little more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12M", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("store_server", WITHOUT_MOTO, indirect=True)
def test_a_disk_that_fills_up_midway_is_told(store_server: StoreServer, root: str, small_disk: Path) -> None:
    """With what to do; once there is room again, the fetch goes on."""
    store_server.fill(root, FILES)
    settings = store_server.settings(cache_dir=small_disk / "cache")
    storage = storage_at(store_server.uri(f"{root}/model/"))
    other = small_disk / "other"

    def fill_up(done: int, total: int | None) -> None:
        if total and not other.exists():
            other.write_bytes(bytes(6 * MIB))

    with pytest.raises(NoSpaceError, match="free some space"):
        materialize(storage, settings, fill_up)
    other.unlink()

    path = materialize(storage, settings, lambda *_: None)
    assert (path / "model.safetensors").read_bytes() == FILES["model/model.safetensors"]
