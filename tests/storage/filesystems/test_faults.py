"""What bad networks do, over every kind of store, and the whole way from a URI to verified files."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from faultproxy import ALWAYS, Fault, FaultProxy
from storage.filesystems.conftest import KINDS, WITHOUT_MOTO
from storage.store_servers import StoreServer, storage_at

from appliance.core.errors import StorageError, StorageTimeoutError, StorageUnavailableError
from appliance.storage import materialize

FILES = {"model/config.json": b"{}", "model/model.safetensors": random.Random(1).randbytes(1_000_000)}
SIZE = sum(map(len, FILES.values()))

# Past any listing, and within the first range that comes over a connection: some stores close it after each.
WITHIN = 40_000

# Connections that break at each range, and not at the first one alone.
SURVIVED = Fault("reset", after=WITHIN)

# Signatures cover the Range header, so that nobody can take it out; moto does not look at them. SSH has none.
UNSIGNED = [kind for kind in KINDS if kind not in ("s3", "sftp")]

# Each store shows these faults, and these stores show all of them and survive each for as long as it lasts; the rest is
# for test-long.
EVERYWHERE = ("reset", "stall", "corrupt")
THOROUGH = ("s3", "http", "hf")

# No answer of any store is as short.
AT_ONCE = 40

# Three tries with pauses of less than a second between them, and time for a busy machine.
SOON_SECONDS = 60


def over_stores(*rows: tuple[Fault, Any]) -> list[Any]:  # Any: pytest's rows
    """Each row, a fault and what is expected, over each store."""
    return [
        pytest.param(
            kind,
            fault,
            expected,
            marks=[pytest.mark.long] * (kind not in THOROUGH and (fault.kind not in EVERYWHERE or fault == SURVIVED)),
            id=f"{kind} {fault.kind} {'always' if fault.times == ALWAYS else 'once'}",
        )
        for kind in WITHOUT_MOTO
        for fault, expected in rows
        # A part of SSH is whole or lost: nothing passes where every connection breaks within one.
        if (kind, fault) != ("sftp", SURVIVED)
    ]


def fetch_model(
    store_server: StoreServer, root: str, proxy: FaultProxy, tmp_path: Path, stall_seconds: float = 30
) -> dict[str, bytes]:
    """Fetch the model through the proxy."""
    transfer = {"stall_seconds": stall_seconds, "retries": 2, "chunk_bytes": 64 * 1024, "parallel": 4}
    settings = store_server.settings(proxy.port, cache_dir=tmp_path / "cache", transfer=transfer)
    path = materialize(storage_at(store_server.uri(f"{root}/model/", proxy.port)), settings, lambda *_: None)
    return {f"model/{file.name}": file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def filled(store_server: StoreServer, root: str) -> str:
    """The root with the model."""
    store_server.fill(root, FILES)
    return root


@pytest.mark.parametrize(
    ("store_server", "fault", "stall_seconds"),
    over_stores(
        (Fault("reset", after=WITHIN, times=1), 30),
        (SURVIVED, 30),
        (Fault("fin", after=WITHIN, times=1), 30),
        # As long as a busy machine needs to answer at all.
        (Fault("stall", after=WITHIN, times=1), 2),
        (Fault("corrupt", after=WITHIN, times=1), 30),
        (Fault("hang_up", times=1), 30),
    ),
    indirect=["store_server"],
)
def test_what_passes_is_survived(
    store_server: StoreServer, filled: str, proxy: FaultProxy, tmp_path: Path, fault: Fault, stall_seconds: float
) -> None:
    """
    A fault that lets some bytes through costs time, and at most a few bytes more; a wrong byte is found and mended.
    """
    proxy.set(fault)

    assert fetch_model(store_server, filled, proxy, tmp_path, stall_seconds) == FILES
    assert proxy.hits >= 1
    assert proxy.sent < 1.5 * SIZE


@pytest.mark.parametrize(
    ("store_server", "fault", "error"),
    over_stores(
        (Fault("reset", after=AT_ONCE), StorageUnavailableError),
        (Fault("fin", after=AT_ONCE), StorageUnavailableError),
        (Fault("stall", after=AT_ONCE), StorageTimeoutError),
        (Fault("hang_up"), StorageUnavailableError),
    ),
    indirect=["store_server"],
)
def test_what_stays_ends_soon(
    store_server: StoreServer, filled: str, proxy: FaultProxy, tmp_path: Path, fault: Fault, error: type[StorageError]
) -> None:
    """Nobody waits for ever: the error says where it was, and nothing half done is taken for a model."""
    proxy.set(fault)
    begun = time.monotonic()

    with pytest.raises(error) as caught:
        fetch_model(store_server, filled, proxy, tmp_path, stall_seconds=0.5 if fault.kind == "stall" else 30)
    assert time.monotonic() - begun < SOON_SECONDS
    assert filled in str(caught.value)
    assert not list((tmp_path / "cache").glob("*/appliance-manifest.json"))


@pytest.mark.parametrize("store_server", UNSIGNED, indirect=True)
def test_a_whole_file_for_a_part_is_not_taken(
    store_server: StoreServer, filled: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Once it is asked for again; somebody who takes the Range header out of every request is told of."""
    proxy.set(Fault("whole"))
    with pytest.raises(StorageUnavailableError, match=r"whole file.*a proxy .* removes the Range header"):
        fetch_model(store_server, filled, proxy, tmp_path)
    proxy.set(Fault("whole", times=1))

    assert fetch_model(store_server, filled, proxy, tmp_path) == FILES
    assert proxy.hits == 1


@pytest.mark.parametrize("store_server", WITHOUT_MOTO, indirect=True)
def test_a_fetch_goes_on_where_it_was_broken_off(
    store_server: StoreServer, filled: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """What came before the store went away for good is not fetched again when it is back."""
    proxy.set(Fault("slow", rate=400_000))

    class StopError(Exception):
        """What ends the first fetch."""

    def stop(done: int, total: int | None) -> None:
        if done >= SIZE // 3:
            raise StopError

    settings = store_server.settings(proxy.port, cache_dir=tmp_path / "cache")
    storage = storage_at(store_server.uri(f"{filled}/model/", proxy.port))
    with pytest.raises(StopError):
        materialize(storage, settings, stop)
    proxy.set(None)

    path = materialize(storage, settings, lambda *_: None)
    assert (path / "model.safetensors").read_bytes() == FILES["model/model.safetensors"]
    assert proxy.sent < SIZE
