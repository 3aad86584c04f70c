"""`appliance.lock`: the files of every storage of a config with their digests, so that changed models are noticed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from appliance.config.storage import LOCK_FILE_NAME, GlobalStorageConfig, StorageConfig
from appliance.core.disk import translate_disk_errors
from appliance.core.errors import ArtifactChangedError, StorageError
from appliance.core.uri import redact, scheme_of
from appliance.storage import bounded_json
from appliance.storage.manifest import FileInfo, FileList

Key = tuple[str, tuple[str, ...], tuple[str, ...], str]
"""URI without secrets, include, exclude and a digest of the options: what identifies a storage in a lock file."""

# Enough for thousands of models with thousands of files each.
_MAX_BYTES = 256 * 1024 * 1024

_VERSION = 1
_MAX_DIFFERENCES = 5

# A commit of the hub, or a digest of a registry, in a canonical URI; shown separately for people.
_REVISION = re.compile(r"[@:]([0-9a-f]{40}|sha256:[0-9a-f]{64})(?=/|$)")


@dataclass(frozen=True, slots=True)
class LockEntry:
    """The files of one storage; their source has a fixed revision."""

    key: Key
    found: FileList

    @classmethod
    def of(cls, storage: StorageConfig, found: FileList) -> LockEntry:
        """Return the entry for a storage and the files it led to."""
        return cls(key_of(storage), found)

    def pin(self, storage: StorageConfig) -> StorageConfig:
        """Return the storage with the locked revision in place of a branch or tag."""
        if self.found.source is None or scheme_of(storage.uri) not in ("hf", "oci"):
            return storage
        return storage.model_copy(update={"uri": self.found.source})

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
                f"{self.key[0]}: differs from {LOCK_FILE_NAME}: {listed}; "
                "if the change is intended, accept it with: appliance lock FILE"
            )

    def _differences(self, files: Mapping[str, FileInfo]) -> Iterator[str]:
        for name in sorted({*files, *self.found.files}):
            found, locked = files.get(name), self.found.files.get(name)
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
        uri, include, exclude, options = self.key
        revision = _REVISION.search(self.found.source or "")
        data = {
            "uri": uri,
            "place": self.found.source,
            "revision": revision and revision[1],
            "include": include,
            "exclude": exclude,
            "options": options,
            "files": {name: asdict(info) for name, info in sorted(self.found.files.items())},
        }
        return {name: value for name, value in data.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LockEntry:  # Any: JSON values
        """Return the entry that `to_json` wrote."""
        files = {name: FileInfo(int(info["size"]), str(info["sha256"])) for name, info in data["files"].items()}
        include, exclude = tuple(data.get("include", ())), tuple(data.get("exclude", ()))
        return cls((data["uri"], include, exclude, data.get("options", "")), FileList(data.get("place"), files))


def find_entry(storage: StorageConfig, settings: GlobalStorageConfig) -> LockEntry | None:
    """Return the entry of a storage in the lock file of the settings, or None.

    Raises:
        StorageError: the lock file is invalid, or the settings require an entry and there is none.
    """
    entries = read(settings.lock_file) if settings.lock_file else None
    found = (entries or {}).get(key_of(storage))
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


def key_of(storage: StorageConfig) -> Key:
    """Return what identifies a storage."""
    return (redact(storage.uri), storage.include, storage.exclude, options_digest(storage))


def options_digest(storage: StorageConfig) -> str:
    """Return a digest of the options, which may choose what the URI means; "" if there are none.

    Secrets by their names are left out: a new password leads to the same files, and the lock file is public.
    """
    options = storage.options.get_secret_value()
    if not options:
        return ""
    public = json.dumps(_without_secrets(options), sort_keys=True)
    return hashlib.sha256(public.encode()).hexdigest()[:12]


def _without_secrets(value: Any) -> Any:  # Any: JSON values
    # Heavy: it has the schema of the whole config.
    from appliance.config.masking import is_private_name

    if not isinstance(value, dict):
        return value
    return {name: _without_secrets(inner) for name, inner in value.items() if not is_private_name(name)}
