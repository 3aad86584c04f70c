"""The files and batches of all owners on disk, for several processes; all methods block: call them in a thread."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.batches.objects import FINAL, Batch, FileObject, new_id, now
from appliance.config.batches import BatchesConfig
from appliance.core.errors import RequestError
from appliance.core.file_lock import FileLock
from appliance.core.stored_objects import (
    DamagedObjectError,
    ObjectKey,
    StoredObjects,
    decode_stored,
    disk_errors,
    opening,
)

Stored = TypeVar("Stored", FileObject, Batch)

CONTENT = "content"
"""The name of the content of a file."""
INPUT, OUTPUT, ERRORS = "input.jsonl", "output.jsonl", "errors.jsonl"
"""The files of a batch: its requests, and the journals of those that succeeded and failed."""

_OBJECT, _CANCELLED = "object.json", "cancelled"
_FILE, _BATCH = "file-", "batch_"

# An upload that is so old was left by a process that died, and so was an object without a description.
_ABANDONED_SECONDS = 24 * 3600


class StoreFullError(RequestError):
    """The files together are as large as they may be."""

    status = 413
    code = "store_full"


class BatchStore:
    """The store; every method raises `StoreUnavailableError` if the disk fails or is full.

    Each file and each batch is a stored object; a batch is claimed until it ends.
    """

    def __init__(self, config: BatchesConfig) -> None:
        self.config = config
        # Nothing is removed to make room: clients delete files, or they expire, each at its own time.
        self._objects = StoredObjects(config.directory, keep_seconds=math.inf, max_bytes=sys.maxsize)
        self._uploads = config.directory / ".uploads"

    def open(self) -> None:
        """Create the directory, or accept one that is private.

        Raises:
            StorageError: others can write to it.
            ApplianceError: it cannot be created.
        """
        with opening(self.config.directory, "batches.directory"):
            self._objects.open()
            self._uploads.mkdir(mode=0o700, exist_ok=True)

    def new_upload(self) -> Path:
        """Return the path of a new file, for `add_file`.

        Raises:
            StoreFullError: there is no room.
        """
        with disk_errors():
            size = sum(map(_own_size, [*self.config.directory.glob("*/*/*"), *self._uploads.iterdir()]))
        if size >= self.config.max_bytes:
            raise StoreFullError(
                f"The files of this server have {size} bytes; batches.max_bytes allows {self.config.max_bytes}, "
                "so delete files, or wait until some expire"
            )
        return self._uploads / new_id("")

    def add_file(self, owner: str, file: FileObject, content: Path) -> None:
        """Add a file; its content is moved here."""
        key = ObjectKey(owner, file.id)
        with disk_errors():
            self._objects.write(key, CONTENT, b"")
            content.replace(self.path(owner, file.id, CONTENT))
            self._objects.write(key, _OBJECT, msgspec.json.encode(file))

    def file(self, owner: str, file_id: str) -> FileObject | None:
        """Return a file; None if there is none, or if it has expired."""
        found = self._read(ObjectKey(owner, file_id), _FILE, FileObject)
        return found if found is not None and found.expires_at > now() else None

    def batch(self, owner: str, batch_id: str) -> Batch | None:
        """Return a batch; None if there is none."""
        found = self._read(ObjectKey(owner, batch_id), _BATCH, Batch)
        if found is not None and found.status not in FINAL and (since := self.cancelled_at(owner, batch_id)):
            found.status, found.cancelling_at = "cancelling", since
        return found

    def files(self, owner: str) -> list[FileObject]:
        """Return the files of an owner, the newest first."""
        return self._list(self.file, owner, _FILE)

    def batches(self, owner: str) -> list[Batch]:
        """Return the batches of an owner, the newest first."""
        return self._list(self.batch, owner, _BATCH)

    def path(self, owner: str, object_id: str, name: str) -> Path:
        """Return the path of a file of an object that exists."""
        path = self._objects.path(ObjectKey(owner, object_id))
        if path is None:
            raise FileNotFoundError(object_id)
        return path / name

    def delete(self, owner: str, object_id: str) -> None:
        """Delete an object; a batch keeps its own link to its input."""
        self._objects.delete(ObjectKey(owner, object_id))

    def add_batch(self, owner: str, batch: Batch) -> None:
        """Add a batch, for a process to claim."""
        key = ObjectKey(owner, batch.id)
        claim = self._objects.claim(key, is_new=True)
        with disk_errors():
            self.save(owner, batch)
            os.link(self.path(owner, batch.input_file_id, CONTENT), self.path(owner, batch.id, INPUT))
        if claim is not None:
            claim.close()

    def save(self, owner: str, batch: Batch) -> None:
        """Write a batch; only the process that has claimed a batch changes it."""
        self._objects.write(ObjectKey(owner, batch.id), _OBJECT, msgspec.json.encode(batch))

    def unfinished(self) -> list[ObjectKey]:
        """Return all batches that have not ended, the oldest first."""
        return sorted(self._objects.unfinished(), key=lambda key: key.id)

    def claim(self, key: ObjectKey) -> FileLock | None:
        """Return the lock that makes this process the one that runs a batch; None while another one has it."""
        return self._objects.claim(key, is_new=False)

    def finish(self, key: ObjectKey, claim: FileLock) -> None:
        """Note that a batch has ended."""
        self._objects.finish(key, claim)

    def cancel(self, owner: str, batch_id: str) -> None:
        """Have the process that runs a batch cancel it."""
        self._objects.write_once(ObjectKey(owner, batch_id), _CANCELLED, str(now()).encode())

    def cancelled_at(self, owner: str, batch_id: str) -> int | None:
        """Return when a batch was cancelled, in seconds since 1970; None if it was not."""
        key = ObjectKey(owner, batch_id)
        moment = self._objects.read(key, _CANCELLED)
        return None if moment is None else decode_stored(key, moment, int)

    def sweep(self) -> None:
        """Delete what has expired, and what processes that died have left."""
        self._objects.sweep()
        with disk_errors():
            for path in self._uploads.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                        path.unlink()
        for key in self._expired():
            self._objects.delete(key)

    def _expired(self) -> Iterator[ObjectKey]:
        for key in [*self._objects.keys(_FILE), *self._objects.keys(_BATCH)]:
            try:
                is_expired = self._is_expired(key)
            except DamagedObjectError:
                is_expired = self._is_older(key, self.config.keep_hours * 3600)
            if is_expired:
                yield key

    def _is_expired(self, key: ObjectKey) -> bool:
        if (file := self._read(key, _FILE, FileObject)) is not None:
            return file.expires_at <= now()
        batch = self._read(key, _BATCH, Batch)
        return self._is_older(key, _ABANDONED_SECONDS) if batch is None else self._is_old(batch)

    def _is_old(self, batch: Batch) -> bool:
        return batch.status in FINAL and now() - batch.ended_at > self.config.keep_hours * 3600

    def _is_older(self, key: ObjectKey, seconds: float) -> bool:
        path = self._objects.path(key)
        with disk_errors(), suppress(FileNotFoundError):
            return path is not None and time.time() - path.stat().st_mtime > seconds
        return False

    def _list(self, read: Callable[[str, str], Stored | None], owner: str, prefix: str) -> list[Stored]:
        found = []
        for object_id in sorted((key.id for key in self._objects.keys(prefix, owner)), reverse=True):
            # It was logged.
            with suppress(DamagedObjectError):
                found.append(read(owner, object_id))
        return [each for each in found if each is not None]

    def _read(self, key: ObjectKey, prefix: str, kind: type[Stored]) -> Stored | None:
        data = self._objects.read(key, _OBJECT) if key.id.startswith(prefix) else None
        return None if data is None else decode_stored(key, data, kind)


def _own_size(path: Path) -> int:
    """Return the share of a name in the size of its file; 0 if it was just renamed or deleted."""
    with suppress(FileNotFoundError):
        facts = path.stat()
        # A batch has a link to its input, so that the input can be deleted.
        return facts.st_size // max(facts.st_nlink, 1)
    return 0
