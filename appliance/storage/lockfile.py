"""
`appliance.lock`: the state of every storage of a config, file by file, so that other bytes are never served unnoticed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from appliance.config.storage import LOCK_FILE_NAME, GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactChangedError, StorageError
from appliance.core.uri import redact
from appliance.storage import bounded_json
from appliance.storage.disk_errors import disk_faults
from appliance.storage.file_list import FileInfo, FileList

# Thousands of models with thousands of files each.
_MOST_BYTES = 256 * 1024 * 1024

_VERSION = 1
_MOST_NAMED = 5

# A commit of the hub, as it stands in a canonical URI; told for people, who find it nowhere else.
_COMMIT = re.compile(r"[@:]([0-9a-f]{40})(?=/|$)")


@dataclass(frozen=True, slots=True)
class LockedArtifact:
    """
    The state of one storage; `uri` is as the config has it, without secrets, and `place` what it led to, a revision in
    it resolved to what cannot move, or None where the files were used in place.
    """

    uri: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    place: str | None
    files: Mapping[str, FileInfo]

    @classmethod
    def of(cls, storage: StorageConfig, found: FileList) -> LockedArtifact:
        """What `storage` led to."""
        return cls(
            redact(storage.uri), storage.include, storage.exclude, found.place, dict(sorted(found.files.items()))
        )

    @property
    def key(self) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """What tells this storage from others."""
        return (self.uri, self.include, self.exclude)

    def require(self, found: FileList) -> None:
        """Return when the files are those that are locked; those that nobody has read are held to their sizes.

        Raises:
            ArtifactChangedError: they are not, with the first differences.
        """
        differences = list(self._differences(found.files))
        if differences:
            more = len(differences) - _MOST_NAMED
            listed = "; ".join(differences[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
            raise ArtifactChangedError(
                f"{self.uri}: differs from {LOCK_FILE_NAME}: {listed}; "
                "if the change is wanted, accept it with: appliance lock FILE"
            )

    def _differences(self, files: Mapping[str, FileInfo]) -> Iterator[str]:
        for name in sorted({*files, *self.files}):
            found, locked = files.get(name), self.files.get(name)
            if locked is None:
                yield f"{name} is there, and is not locked"
            elif found is None:
                yield f"{name} is locked, and is not there"
            elif found.size != locked.size:
                yield f"{name} has {found.size:,} bytes, and {locked.size:,} are locked"
            elif found.sha256 not in (None, locked.sha256):
                yield f"{name} has the SHA-256 {found.sha256}, and {locked.sha256} is locked"


def locked(storage: StorageConfig, settings: GlobalStorageConfig) -> LockedArtifact | None:
    """The state that `storage` is locked to, or None.

    Raises:
        StorageError: the lock is no lock, or the settings ask for one and there is none for this storage.
    """
    entries = read(settings.lock_file) if settings.lock_file else None
    found = (entries or {}).get(_key(storage))
    if settings.frozen and found is None:
        name = settings.lock_file or LOCK_FILE_NAME
        fault = f"{name} is not there" if entries is None else f"is not in {name}"
        raise StorageError(
            f"{redact(storage.uri)}: {fault}, and storage.frozen asks for it; write it with: appliance lock FILE"
        )
    return found


def foresee(storage: StorageConfig, settings: GlobalStorageConfig, listed: FileList) -> None:
    """Return when files as a store lists them can be those that are locked: nothing is fetched only to be refused.

    Raises:
        ArtifactChangedError: they cannot.
    """
    entries = read(settings.lock_file) if settings.lock_file else None
    if found := (entries or {}).get(_key(storage)):
        found.require(listed)


def read(path: Path) -> dict[tuple[str, tuple[str, ...], tuple[str, ...]], LockedArtifact] | None:
    """The entries of a lock by their keys, or None when there is no such file.

    Raises:
        StorageError: it cannot be read, or was not written by us.
    """
    try:
        data = bounded_json.read(path, _MOST_BYTES)
        if data["version"] != _VERSION:
            raise StorageError(f"{path}: of version {data['version']}, and this appliance knows {_VERSION}; update it")
        return {entry.key: entry for entry in map(_parse, data["storages"])}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; change its owner or mode") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{path}: is no lock ({error!r}); restore it, or write it anew: appliance lock FILE"
        ) from error


def write(path: Path, entries: Iterable[LockedArtifact]) -> None:
    """
    Put these entries into a lock, over those of the same storages; entries of others stay, for configs that share it.

    The same state always makes the same bytes.
    """
    merged = (read(path) or {}) | {entry.key: entry for entry in entries}
    data = {"version": _VERSION, "storages": [_render(merged[key]) for key in sorted(merged)]}
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    with disk_faults(path):
        try:
            with temporary.open("x") as file:
                file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _key(storage: StorageConfig) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return (redact(storage.uri), storage.include, storage.exclude)


def _render(entry: LockedArtifact) -> dict[str, object]:
    """The entry as JSON, without what is empty."""
    revision = _COMMIT.search(entry.place or "")
    facts = {"uri": entry.uri, "place": entry.place, "revision": revision and revision[1]}
    return {name: value for name, value in {**facts, **asdict(entry)}.items() if value}


def _parse(data: Mapping[str, Any]) -> LockedArtifact:  # Any: JSON values
    return LockedArtifact(
        uri=data["uri"],
        include=tuple(data.get("include", ())),
        exclude=tuple(data.get("exclude", ())),
        place=data.get("place"),
        files={name: FileInfo(int(held["size"]), str(held["sha256"])) for name, held in data["files"].items()},
    )
