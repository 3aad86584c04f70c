"""What is known about a storage before its store is asked: lock entry, pinned URI, and the last known path."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.uri import redact
from appliance.storage import lockfile
from appliance.storage.cache import Cache
from appliance.storage.filesystems.registry import find_endpoint
from appliance.storage.lockfile import LockEntry
from appliance.storage.manifest import FILES, artifact_of
from appliance.storage.path_safety import name_error


@dataclass(frozen=True, slots=True)
class ResolvedStorage:
    """A storage with its entry in the lock file; `pinned` has the locked revision, `configured` that of the config."""

    configured: StorageConfig
    pinned: StorageConfig
    lock_entry: LockEntry | None
    settings: GlobalStorageConfig
    cache: Cache

    @property
    def uri(self) -> str:
        """The configured URI without secrets."""
        return redact(self.configured.uri)

    def last_known_path(self) -> Path | None:
        """Return where the pinned storage led the last time, if all of it is still in the cache."""
        return self._last_known_path(self.pinned)

    def cached_path(self) -> Path | None:
        """Return `last_known_path`, or that of the configured storage, which may have been fetched before the lock."""
        return self.last_known_path() or self._last_known_path(self.configured)

    def remember(self, path: Path) -> None:
        """Note where the storage led, if that is in the cache."""
        if path.is_relative_to(self.cache.root):
            for key in {self._note_key(self.pinned), self._note_key(self.configured)}:
                self.cache.write_note(key, path.relative_to(self.cache.root).as_posix())

    def _last_known_path(self, storage: StorageConfig) -> Path | None:
        note = self.cache.read_note(self._note_key(storage))
        # Others may be able to write to the cache: a note must not lead out of it.
        if not note or name_error(note):
            return None
        path = self.cache.root / note
        found = artifact_of(path)
        is_sound = found and path.exists() and not found[1].damaged_files(found[0] / FILES)
        return path if is_sound else None

    def _note_key(self, storage: StorageConfig) -> str:
        uri, include, exclude, options = lockfile.key_of(storage)
        # Another store may have other files under the same URI.
        others = filter(None, [options, find_endpoint(storage.uri, self.settings)])
        return f"{uri}#{json.dumps([include, exclude, storage.allow_pickle, *others])}"


def resolve(storage: StorageConfig, settings: GlobalStorageConfig) -> ResolvedStorage:
    """Look a storage up in the lock file."""
    entry = lockfile.find_entry(storage, settings)
    pinned = entry.pin(storage) if entry else storage
    return ResolvedStorage(storage, pinned, entry, settings, Cache.at(settings.cache_dir))
