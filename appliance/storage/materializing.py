"""
The one way from a storage section to local bytes: what is locked, pinned, and already here, whatever the scheme.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from appliance.errors import ArtifactChangedError, ArtifactNotFoundError
from appliance.storage import local, lockfile, volumes
from appliance.storage.cache import Cache, Report
from appliance.storage.contents import contents
from appliance.storage.lockfile import Locked
from appliance.storage.manifest import FILES, artifact_of
from appliance.storage.schemes import SCHEMES, way
from appliance.storage.section import StorageSection, StorageSettings
from appliance.storage.uri import redact, scheme_of

log = structlog.get_logger()


def materialize(storage: StorageSection, settings: StorageSettings, report: Report) -> Path:
    """
    A local directory or single file with the bytes `storage` names, verified; blocks until it is there.

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
        path = way(wanted.uri)(wanted, settings, report)
        for each in {wanted, storage}:
            _note(each, path, settings)
    _require(path, storage, locked, partial(report, 0, None))
    return path


def brought(storage: StorageSection, settings: StorageSettings) -> Path | None:
    """
    What a storage led to the last time, in the state it is locked to if it is, and if all of it is still in the cache.
    """
    cache = Cache.at(settings.cache_dir)
    for each in (as_locked(storage, settings), storage):
        noted = cache.noted(_question(each))
        path = cache.root / noted if noted else None
        artifact, manifest = (path and artifact_of(path)) or (None, None)
        if path and path.exists() and artifact and manifest and not manifest.damage(artifact / FILES):
            return path
    return None


def as_locked(storage: StorageSection, settings: StorageSettings) -> StorageSection:
    """
    The storage with the locked revision in place of one that can move.
    """
    locked = lockfile.locked(storage, settings)
    if locked is None or locked.place is None or scheme_of(storage.uri) != "hf":
        return storage
    return storage.model_copy(update={"uri": locked.place})


def is_in_place(storage: StorageSection) -> bool:
    """
    Whether the bytes are used where they lie, without the cache.
    """
    return SCHEMES.get(scheme_of(storage.uri) or "file") in {local.find, volumes.find}


def _note(storage: StorageSection, path: Path, settings: StorageSettings) -> None:
    cache = Cache.at(settings.cache_dir)
    if path.is_relative_to(cache.root):
        cache.note(_question(storage), path.relative_to(cache.root).as_posix())


def _question(storage: StorageSection) -> str:
    return f"{redact(storage.uri)}#{json.dumps([storage.include, storage.exclude, storage.allow_pickle])}"


def _require(path: Path, storage: StorageSection, locked: Locked | None, tick: Callable[[], None]) -> None:
    """
    Return when the bytes are the ones that are locked and pinned.

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
