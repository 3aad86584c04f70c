"""What a storage led to the last time, for when its store need not or cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.config.storage import StorageConfig
from appliance.core.uri import redact
from appliance.storage import path_safety
from appliance.storage.cache import Cache
from appliance.storage.manifest import FILES, artifact_of


def remember(storage: StorageConfig, path: Path, cache: Cache) -> None:
    """Keep in mind where a storage led; what does not lie in the cache is found again anyway."""
    if path.is_relative_to(cache.root):
        cache.note(_question(storage), path.relative_to(cache.root).as_posix())


def last_known_path(storage: StorageConfig, cache: Cache) -> Path | None:
    """Where a storage led the last time, if all of it is still in the cache."""
    noted = cache.noted(_question(storage))
    # A cache may be one that others can write to: nothing outside it is meant.
    path = cache.root / noted if noted and not path_safety.fault(noted) else None
    artifact, manifest = (path and artifact_of(path)) or (None, None)
    if path and path.exists() and artifact and manifest and not manifest.damage(artifact / FILES):
        return path
    return None


def _question(storage: StorageConfig) -> str:
    return f"{redact(storage.uri)}#{json.dumps([storage.include, storage.exclude, storage.allow_pickle])}"
