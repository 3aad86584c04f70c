"""`appliance.lock`: the files of every storage of a config with their digests, so that changed models are noticed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from appliance.config.storage import LOCK_FILE_NAME, GlobalStorageConfig, StorageConfig
from appliance.core.disk import translate_disk_errors
from appliance.core.errors import ArtifactChangedError, StorageError
from appliance.core.uri import redact, scheme_of
from appliance.storage import bounded_json
from appliance.storage.manifest import FileInfo, FileList

Key = tuple[str, tuple[str, ...], tuple[str, ...]]
"""URI without secrets, include and exclude: what identifies a storage in a lock file."""

# Enough for thousands of models with thousands of files each.
_MAX_BYTES = 256 * 1024 * 1024

_VERSION = 1
_MAX_DIFFERENCES = 5

# A commit of the hub, or a digest of a registry, in a canonical URI; shown separately for people.
_REVISION = re.compile(r"[@:]([0-9a-f]{40}|sha256:[0-9a-f]{64})(?=/|$)")


@dataclass(frozen=True, slots=True)
class LockEntry:
    """The files of one storage; `uri` is as in the config, without secrets.

    `source` is the canonical URI the files came from, with a fixed revision, or None if they are used in place.
    """

    uri: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    source: str | None
    files: Mapping[str, FileInfo]

    @classmethod
    def of(cls, storage: StorageConfig, found: FileList) -> LockEntry:
        """Return the entry for a storage and the files it led to."""
        return cls(*_key_of(storage), found.source, dict(sorted(found.files.items())))

    @property
    def key(self) -> Key:
        """What identifies the storage."""
        return (self.uri, self.include, self.exclude)

    def pin(self, storage: StorageConfig) -> StorageConfig:
        """Return the storage with the locked revision in place of a branch or tag."""
        if self.source is None or scheme_of(storage.uri) not in ("hf", "oci"):
            return storage
        return storage.model_copy(update={"uri": self.source})

    def check(self, found: FileList) -> None:
        """Compare files with the locked ones; files without a known digest are compared by size.

        Raises:
            ArtifactChangedError: they differ; the message has the first differences.
        """
        differences = list(self._differences(found.files))
        if differences:
            more = len(differences) - _MAX_DIFFERENCES
            listed = "; ".join(differences[:_MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
            raise ArtifactChangedError(
                f"{self.uri}: differs from {LOCK_FILE_NAME}: {listed}; "
                "if the change is intended, accept it with: appliance lock FILE"
            )

    def _differences(self, files: Mapping[str, FileInfo]) -> Iterator[str]:
        for name in sorted({*files, *self.files}):
            found, locked = files.get(name), self.files.get(name)
            if locked is None:
                yield f"{name} exists, and is not locked"
            elif found is None:
                yield f"{name} is locked, and does not exist"
            elif found.size != locked.size:
                yield f"{name} has {found.size:,} bytes, and {locked.size:,} are locked"
            elif found.sha256 not in (None, locked.sha256):
                yield f"{name} has the SHA-256 {found.sha256}, and {locked.sha256} is locked"

    def to_json(self) -> dict[str, object]:
        """Return the entry without its empty values."""
        revision = _REVISION.search(self.source or "")
        data = {
            "uri": self.uri,
            "place": self.source,
            "revision": revision and revision[1],
            "include": self.include,
            "exclude": self.exclude,
            "files": {name: {"size": info.size, "sha256": info.sha256} for name, info in self.files.items()},
        }
        return {name: value for name, value in data.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LockEntry:  # Any: JSON values
        """Return the entry that `to_json` wrote."""
        return cls(
            uri=data["uri"],
            include=tuple(data.get("include", ())),
            exclude=tuple(data.get("exclude", ())),
            source=data.get("place"),
            files={name: FileInfo(int(info["size"]), str(info["sha256"])) for name, info in data["files"].items()},
        )


def find_entry(storage: StorageConfig, settings: GlobalStorageConfig) -> LockEntry | None:
    """Return the entry of a storage in the lock file of the settings, or None.

    Raises:
        StorageError: the lock file is invalid, or the settings require an entry and there is none.
    """
    entries = read(settings.lock_file) if settings.lock_file else None
    found = (entries or {}).get(_key_of(storage))
    if settings.frozen and found is None:
        error = (
            f"{settings.lock_file or LOCK_FILE_NAME} does not exist"
            if entries is None
            else f"not in {settings.lock_file}"
        )
        raise StorageError(
            f"{redact(storage.uri)}: {error}, and storage.frozen requires it; write it with: appliance lock FILE"
        )
    return found


def read(path: Path) -> dict[Key, LockEntry] | None:
    """Return the entries of a lock file by their keys, or None if there is no file."""
    try:
        data = bounded_json.read(path, _MAX_BYTES)
        if data["version"] != _VERSION:
            raise StorageError(f"{path}: has version {data['version']}, and this appliance reads {_VERSION}; update it")
        return {entry.key: entry for entry in map(LockEntry.from_json, data["storages"])}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; change its owner or mode") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{path}: is no lock file ({error!r}); restore it, or write a new one: appliance lock FILE"
        ) from error


def write(path: Path, entries: Iterable[LockEntry]) -> None:
    """Write entries into a lock file, replacing those of the same storages.

    Entries of other storages stay, for configs that share the file. The output is deterministic.
    """
    merged = (read(path) or {}) | {entry.key: entry for entry in entries}
    data = {"version": _VERSION, "storages": [merged[key].to_json() for key in sorted(merged)]}
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    with translate_disk_errors(path):
        try:
            with temporary.open("x") as file:
                file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _key_of(storage: StorageConfig) -> Key:
    return (redact(storage.uri), storage.include, storage.exclude)
