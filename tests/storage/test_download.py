"""The transfer: parallel ranges of many files, whatever the store does meanwhile."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
import pytest
from storage.fake_store import BLOCK, FakeStore, Fault
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig, StorageConfig, TransferConfig
from appliance.core.disk import OnProgress, ignore_progress
from appliance.core.errors import (
    AccessDeniedError,
    ApplianceError,
    ArtifactChangedError,
    ArtifactCorruptError,
    NoSpaceError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from appliance.storage import Cache
from appliance.storage.filesystems.base import Listing, RemoteFile
from appliance.storage.materialize import fetch
from appliance.storage.resolution import resolve

WEIGHTS = os.urandom(3_000_001)
FILES = {
    "model.safetensors": WEIGHTS,
    "sub/more.safetensors": os.urandom(500_000),
    "config.json": b"{}",
    ".hidden": b"h",
    "empty.txt": b"",
}


def fetch_model(store: FakeStore, cache: Cache, on_progress: OnProgress = ignore_progress, **limits: float) -> Path:
    """Fetch all that a store has, with impatient limits."""
    transfer = TransferConfig.model_validate({"stall_seconds": 0.3, "retries": 2, **limits})
    settings = GlobalStorageConfig(cache_dir=cache.root, transfer=transfer)
    return fetch(store, resolve(StorageConfig(uri="fake://model"), settings), on_progress)


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_every_file_comes_whole(cache: Cache) -> None:
    """Large ones in ranges, empty ones and dotfiles as well, and each byte once."""
    store = FakeStore(FILES)

    assert contents(fetch_model(store, cache)) == FILES
    assert store.sent_bytes == sum(map(len, FILES.values()))
    assert store.is_closed


def test_what_is_cached_is_listed_and_not_read(cache: Cache) -> None:
    """The second time, only the listing is asked for."""
    first = fetch_model(FakeStore(FILES), cache)
    store = FakeStore(FILES)

    assert fetch_model(store, cache) == first
    assert store.requested == []


@pytest.mark.parametrize("parallel", [1, 4])
def test_as_many_ranges_are_fetched_at_once_as_are_allowed(cache: Cache, parallel: int) -> None:
    """`parallel` is the number of requests under way, over all files together, of a model that is worth them."""
    store = FakeStore({"model.safetensors": bytes(32 << 20)})

    fetch_model(store, cache, parallel=parallel)
    assert store.max_running == parallel


@pytest.mark.parametrize("kind", ["reset", "end", "stall"])
def test_a_broken_answer_is_resumed_from_its_last_byte(cache: Cache, kind: str) -> None:
    """Whatever breaks it, what came is kept, and the next request begins where it ended."""
    after = BLOCK + 123
    store = FakeStore({"model.safetensors": WEIGHTS}, faults=deque([Fault(kind, after)]))  # type: ignore[arg-type] # a parameter

    assert contents(fetch_model(store, cache, parallel=1)) == {"model.safetensors": WEIGHTS}
    assert store.requested[1][1] == after
    assert store.sent_bytes == len(WEIGHTS)


def test_progress_renews_patience(cache: Cache) -> None:
    """A connection that breaks again and again is good enough as long as it brings bytes each time."""
    store = FakeStore({"model.safetensors": WEIGHTS[:300_000]}, always=Fault("reset", 20_000))

    assert contents(fetch_model(store, cache, parallel=1, retries=1)) == {"model.safetensors": WEIGHTS[:300_000]}
    assert len(store.requested) > 10


@pytest.mark.parametrize(
    ("kind", "error", "tries"),
    [
        ("reset", StorageUnavailableError, 3),
        ("end", StorageUnavailableError, 3),
        ("stall", StorageTimeoutError, 3),
        ("deny", AccessDeniedError, 1),
        ("changed", ArtifactChangedError, 1),
        ("more", ArtifactCorruptError, 1),
    ],
)
def test_what_may_pass_is_tried_again_and_nothing_else(
    cache: Cache, kind: str, error: type[ApplianceError], tries: int
) -> None:
    """A fault that lasts ends the fetch: after all tries where it might have passed, and at once where it cannot."""
    store = FakeStore({"model.safetensors": b"w" * 1000}, always=Fault(kind))  # type: ignore[arg-type] # a parameter

    with pytest.raises(error) as caught:
        fetch_model(store, cache)
    assert type(caught.value) is error
    assert len(store.requested) == tries
    assert store.is_closed


def test_a_busy_store_says_how_long_to_wait(cache: Cache) -> None:
    """The pause is at least the one that the store asks for."""
    store = FakeStore({"model.safetensors": b"w"}, faults=deque([Fault("busy")]))

    begun = time.monotonic()
    fetch_model(store, cache)
    assert time.monotonic() - begun > 0.5


def test_a_retry_is_logged_with_its_reason(cache: Cache) -> None:
    """Whoever wonders why a fetch is slow finds it in the log."""
    store = FakeStore({"model.safetensors": b"w"}, faults=deque([Fault("reset")]))

    with capture_logs() as events:
        fetch_model(store, cache)
    assert [event["event"] for event in events] == ["storage.retried", "artifact.fetched"]
    assert events[0]["reason"] == "fake: the connection was reset"


@pytest.mark.parametrize("kind", ["reset", "stall"])
def test_a_listing_is_asked_for_again(cache: Cache, kind: str) -> None:
    """What holds for bytes holds for names."""
    store = FakeStore({"config.json": b"{}"}, listing_faults=deque([Fault(kind)]))  # type: ignore[arg-type] # a parameter

    assert contents(fetch_model(store, cache)) == {"config.json": b"{}"}


def test_a_listing_that_never_comes_times_out(cache: Cache) -> None:
    """A store that is silent is named with its limit."""
    store = FakeStore({}, listing_faults=deque([Fault("stall")] * 9))

    with pytest.raises(StorageTimeoutError, match=r"fake://model: no data for 0\.3 seconds; check the network"):
        fetch_model(store, cache)


def test_a_fetch_has_an_end(cache: Cache) -> None:
    """A store that drips passes every other limit; `timeout_seconds` holds for all of it, and what came is kept."""
    with pytest.raises(StorageTimeoutError, match=r"not fetched within 0\.4 seconds; what arrived is kept"):
        fetch_model(FakeStore(FILES, always=Fault("slow")), cache, timeout_seconds=0.4, parallel=2)

    store = FakeStore(FILES)
    assert contents(fetch_model(store, cache)) == FILES
    assert store.sent_bytes < sum(map(len, FILES.values()))


def test_free_space_is_checked_before_the_first_byte(cache: Cache) -> None:
    """The listing says how much it will be."""

    class Large(FakeStore):
        async def list(self) -> Listing:
            return Listing("fake://model", (RemoteFile("model.safetensors", 1 << 50),))

    store = Large({})
    with pytest.raises(
        NoSpaceError,
        match=r"^fake://model: /.*: 1,125,899,906,842,624 bytes to write, and .* free; free some space, or point",
    ):
        fetch_model(store, cache)
    assert store.requested == []


def promised(algorithm: str) -> Callable[[bytes], Mapping[str, str]]:
    """A store that lists this digest alone."""
    takes: Mapping[str, Callable[[bytes], str]] = {
        "sha256": lambda data: hashlib.sha256(data).hexdigest(),
        "md5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
        "crc32c": lambda data: f"{google_crc32c.extend(0, data):08x}",
        "crc32": lambda data: f"{zlib.crc32(data):08x}",
        "git-blob-sha1": lambda data: hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest(),
    }
    return lambda data: {algorithm: takes[algorithm](data)}


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "crc32c", "crc32", "git-blob-sha1"])
def test_a_flipped_byte_is_found_and_only_its_range_replaced(cache: Cache, algorithm: str) -> None:
    """Every digest that a store may have finds it; reading again stops at the range that was wrong."""
    store = FakeStore({"model.safetensors": WEIGHTS}, promised(algorithm), faults=deque([Fault("flip", 5)]))

    with capture_logs() as events:
        path = fetch_model(store, cache, parallel=1)
    assert contents(path) == {"model.safetensors": WEIGHTS}
    assert [event["event"] for event in events] == [
        "artifact.corrupted",
        "artifact.repaired",
        "artifact.fetched",
    ]
    assert store.sent_bytes < 1.1 * len(WEIGHTS)


def test_bytes_that_stay_wrong_are_refused(cache: Cache) -> None:
    """The error names the file, the digests and who can help; the file is not kept, and those that are right are."""
    wrong = FakeStore({"model.safetensors": WEIGHTS}, lambda _: {"md5": "0" * 32})

    with pytest.raises(
        ArtifactCorruptError, match=r"fake://model: model.safetensors: md5 is \w{32}, and the store lists 0{32}"
    ):
        fetch_model(wrong, cache)
    store = FakeStore({"model.safetensors": WEIGHTS})
    assert contents(fetch_model(store, cache)) == {"model.safetensors": WEIGHTS}
    assert store.sent_bytes == len(WEIGHTS)


def test_an_algorithm_nobody_knows_is_no_reason_to_refuse(cache: Cache) -> None:
    """A store may list digests that came after us."""
    store = FakeStore({"config.json": b"{}"}, lambda _: {"blake9": "x"})

    assert contents(fetch_model(store, cache)) == {"config.json": b"{}"}


def test_the_manifest_has_the_digests_that_were_taken_on_the_way(cache: Cache) -> None:
    """They are right without a second reading."""
    manifest = (fetch_model(FakeStore(FILES), cache).parent / "appliance-manifest.json").read_text()

    assert all(hashlib.sha256(data).hexdigest() in manifest for data in FILES.values())


def test_progress_counts_up_to_the_total(cache: Cache) -> None:
    """It never runs backwards, and ends with all bytes."""
    reports: list[tuple[int, int | None]] = []

    fetch_model(FakeStore(FILES, always=Fault("slow")), cache, lambda *seen: reports.append(seen), parallel=4)
    total = sum(map(len, FILES.values()))
    counts = [done for done, known in reports if known == total]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert counts[-1] == total


class StopError(Exception):
    """Raised to stop a fetch."""


@pytest.mark.parametrize("error", [StopError(), TimeoutError(), KeyboardInterrupt(), ConnectionResetError(104, "x")])
def test_a_report_stops_a_fetch_also_while_nothing_moves(cache: Cache, error: BaseException) -> None:
    """What it raises comes out as it is, and no request is left."""
    store = FakeStore(FILES, always=Fault("stall"))
    calls: list[int] = []

    def report(done: int, total: int | None) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise error

    with pytest.raises(type(error)) as caught:
        fetch_model(store, cache, report, stall_seconds=60)
    assert caught.value is error
    assert store.running == 0
    assert store.is_closed
