"""The one way from a storage section to local bytes: what is locked, pinned, and already here, whatever the scheme."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactChangedError, ArtifactCorruptError, ArtifactNotFoundError
from appliance.core.uri import redact, scheme_of
from appliance.storage import lockfile, resolution_cache
from appliance.storage.artifact import invalidate
from appliance.storage.cache import Cache, Report
from appliance.storage.file_list import contents
from appliance.storage.filesystems import local, pvc
from appliance.storage.filesystems.registry import SCHEMES, backend_for
from appliance.storage.lockfile import LockedArtifact
from appliance.storage.manifest import verify

log = structlog.get_logger()


def materialize(storage: StorageConfig, settings: GlobalStorageConfig, report: Report) -> Path:
    """A local directory or single file with the bytes `storage` names, verified; blocks until it is there.

    Raises:
        ArtifactChangedError: the bytes are others than those that are locked or pinned.
        StorageError: the bytes cannot be brought.
    """
    locked = lockfile.locked(storage, settings)
    wanted = as_locked(storage, settings)
    if settings.offline and not is_in_place(wanted):
        path = brought(storage, settings)
        if path is None:
            raise ArtifactNotFoundError(
                f"{redact(storage.uri)}: not in the cache {Cache.at(settings.cache_dir).root}, and storage.offline "
                "allows no connection; bring it with: appliance pull FILE"
            )
    else:
        path = backend_for(wanted.uri)(wanted, settings, report)
        for each in {wanted, storage}:
            resolution_cache.remember(each, path, Cache.at(settings.cache_dir))
    _require(path, storage, locked, partial(report, 0, None))
    return path


def reread(storage: StorageConfig, settings: GlobalStorageConfig, report: Report) -> Path:
    """What a storage leads to, after every byte in the cache was read again, and fetched anew where it was damaged.

    Raises:
        StorageError: the bytes cannot be brought, or do not stay as they are.
    """
    tick = partial(report, 0, None)
    path = brought(storage, settings) or materialize(storage, settings, report)
    try:
        verify(path, tick)
    except ArtifactCorruptError as error:
        log.warning("artifact.distrusted", reason=str(error))
        invalidate(path)
        path = materialize(storage, settings, report)
        verify(path, tick)
    return path


def brought(storage: StorageConfig, settings: GlobalStorageConfig) -> Path | None:
    """
    What a storage led to the last time, in the state it is locked to if it is, and if all of it is still in the cache.
    """
    cache = Cache.at(settings.cache_dir)
    return resolution_cache.last_known_path(as_locked(storage, settings), cache) or resolution_cache.last_known_path(
        storage, cache
    )


def as_locked(storage: StorageConfig, settings: GlobalStorageConfig) -> StorageConfig:
    """The storage with the locked revision in place of one that can move."""
    locked = lockfile.locked(storage, settings)
    if locked is None or locked.place is None or scheme_of(storage.uri) != "hf":
        return storage
    return storage.model_copy(update={"uri": locked.place})


def is_in_place(storage: StorageConfig) -> bool:
    """Whether the bytes are used where they lie, without the cache."""
    return SCHEMES.get(scheme_of(storage.uri) or "file") in {local.find, pvc.find}


def _require(path: Path, storage: StorageConfig, locked: LockedArtifact | None, tick: Callable[[], None]) -> None:
    """Return when the bytes are the ones that are locked and pinned.

    A lock holds files that are used in place to their sizes, to start at once; a pin is worth reading them.
    """
    if locked:
        locked.require(contents(path, tick, deep=False))
    if storage.digest is None:
        return
    found = contents(path, tick, deep=True).digest
    if found != storage.digest.removeprefix("sha256:"):
        raise ArtifactChangedError(
            f"{redact(storage.uri)}: has the digest sha256:{found}, and storage.digest is {storage.digest}; "
            "check who changed it, or pin the new one"
        )
