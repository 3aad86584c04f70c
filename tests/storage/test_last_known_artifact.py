"""What was brought before, and a store that need not or cannot be asked."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
from storage.fake_store import FakeStore, Fault
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig, StorageConfig, TransferConfig
from appliance.core.errors import AccessDeniedError, StorageUnavailableError
from appliance.storage import Cache
from appliance.storage.materialize import fetch
from appliance.storage.resolution import resolve

STORAGE = StorageConfig(uri="fake://model")
FILES = {"config.json": b"{}", "model.safetensors": b"w"}


def fetch_model(store: FakeStore, cache: Cache, storage: StorageConfig = STORAGE) -> Path:
    """Fetch what a store has, and remember it."""
    settings = GlobalStorageConfig(cache_dir=cache.root, transfer=TransferConfig(stall_seconds=0.2, retries=0))
    resolved = resolve(storage, settings)
    path = fetch(store, resolved, lambda *_: None)
    resolved.remember(path)
    return path


def silent(files: dict[str, bytes] = FILES, kind: str = "reset") -> FakeStore:
    """A store whose listing does not come."""
    return FakeStore(files, listing_faults=deque([Fault(kind)]))  # type: ignore[arg-type] # a parameter


@pytest.mark.parametrize("kind", ["reset", "stall"])
def test_a_silent_store_leaves_what_was_fetched(cache: Cache, kind: str) -> None:
    """A server restarts with the model it had, and says in its log that nobody confirmed it."""
    first = fetch_model(FakeStore(FILES), cache)

    with capture_logs() as events:
        assert fetch_model(silent(kind=kind), cache) == first
    (event,) = events
    assert (event["event"], event["path"]) == ("artifact.unconfirmed", str(first))


def test_what_is_damaged_does_not_stand_in(cache: Cache) -> None:
    """What is no longer whole must be fetched again, and when that fails, so does the whole."""
    (fetch_model(FakeStore(FILES), cache) / "config.json").unlink()

    with pytest.raises(StorageUnavailableError):
        fetch_model(silent(), cache)


def test_what_was_fetched_by_other_rules_does_not_stand_in(cache: Cache) -> None:
    """Fewer files are another model."""
    fetch_model(FakeStore(FILES), cache)

    with pytest.raises(StorageUnavailableError):
        fetch_model(silent(), cache, STORAGE.model_copy(update={"include": ("*.json",)}))


def test_a_refusal_is_an_answer(cache: Cache) -> None:
    """Only silence is bridged: what became private is not served from the cache unasked."""
    fetch_model(FakeStore(FILES), cache)

    with pytest.raises(AccessDeniedError):
        fetch_model(silent(kind="deny"), cache)


def test_what_can_never_change_is_not_asked_for_again(cache: Cache) -> None:
    """A commit that is in the cache works without any store."""
    first = fetch_model(FakeStore(FILES, is_fixed=True), cache)

    store = silent()
    store.is_fixed = True
    assert fetch_model(store, cache) == first
    assert store.listing_faults
