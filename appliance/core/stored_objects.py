"""Objects that clients store here: each is a directory of files, which several processes share.

The path is ``ROOT/OWNER/ID/NAME``. A file is written under a temporary name and renamed, so that it is never half
written. Ids are ours, and are checked before they become names. Objects expire, and a full store loses its oldest ones.
All methods block on the disk: call them in a thread.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import msgspec
import structlog

from appliance.core.disk import make_private
from appliance.core.errors import ApplianceError, RequestError
from appliance.core.file_lock import FileLock

log: structlog.stdlib.BoundLogger = structlog.get_logger()

Stored = TypeVar("Stored")

_ID = re.compile(r"[a-z]{1,16}[-_][0-9a-f]{32}")

# Names of keys begin with a letter or a digit, so no key has this directory.
_NOBODY = "_"

# Has a file for each unfinished object, which is locked while a process works on the object. Apart from the objects, so
# that few files are searched for them.
_CLAIMS = ".claims"

# What a file or a directory takes on a usual file system.
_BLOCK_BYTES = 4096

# Objects and bytes, as two integers of 64 bits.
_USAGE = struct.Struct("<qq")

# After this much was evicted, the next objects fit without a search for the oldest ones.
_EVICTED_SHARE = 1 / 8

_LOCK_POLL_SECONDS = 0.1

# An object without files belongs to a process that died, if it is older than this.
_EMPTY_SECONDS = 60.0


def new_object_id(prefix: str) -> str:
    """Return an id that nobody can guess; `prefix` includes the separator, such as ``resp_`` or ``file-``."""
    return f"{prefix}{uuid.uuid4().hex}"


class StoreUnavailableError(RequestError):
    """The disk of the store fails, or is full."""

    status = 503
    code = "store_unavailable"


class DamagedObjectError(StoreUnavailableError):
    """Someone else has changed a file of an object; the object can be deleted."""


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Number of objects, and their bytes on the disk."""

    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """The owner, by the name of an API key or "" without keys, and the id of an object."""

    owner: str
    id: str


class StoredObjects:
    """The objects in a directory of their own; `is_durable` has files survive a failure of power.

    Every method raises `StoreUnavailableError` if the disk fails or is full.
    """

    def __init__(self, root: Path, *, keep_seconds: float, max_bytes: int, is_durable: bool = True) -> None:
        self._root = root
        self.keep_seconds = keep_seconds
        self.max_bytes = max_bytes
        self._is_durable = is_durable

    def open(self) -> None:
        """Create the directory, or accept one that is private, and remove what is too old.

        Raises:
            StorageError: others can write to the directory.
            OSError: it cannot be created.
        """
        self._root.parent.mkdir(parents=True, exist_ok=True)
        make_private(self._root)
        (self._root / _CLAIMS).mkdir(mode=0o700, exist_ok=True)
        self.sweep()

    def write(self, key: ObjectKey, name: str, data: bytes, *, must_exist: bool = False) -> bool:
        """Write a file of an object, which is created unless it `must_exist`; return whether the file was written."""
        return self._put(key, name, data, must_exist=must_exist, replace=True)

    def write_once(self, key: ObjectKey, name: str, data: bytes) -> bool:
        """Write a file of an object that exists, unless the file exists; return whether this call wrote it."""
        return self._put(key, name, data, must_exist=True, replace=False)

    def append(self, key: ObjectKey, name: str, data: bytes) -> bool:
        """Append to a file of an object that exists; return False if it does not. One process may do so at a time."""
        path = self._path(key) / name
        with disk_errors():
            try:
                before = path.stat().st_size if path.exists() else 0
                self._count(0, _cost(before + len(data)) - _cost(before))
                with os.fdopen(
                    os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb"
                ) as file:
                    file.write(data)
            except FileNotFoundError:
                return False
        return True

    def read(self, key: ObjectKey, name: str) -> bytes | None:
        """Return a file of an object; None if there is none, or if it has expired."""
        if not _ID.fullmatch(key.id):
            return None
        path = self._path(key)
        with disk_errors():
            try:
                return None if self._is_expired(path) else (path / name).read_bytes()
            except FileNotFoundError:
                return None

    def path(self, key: ObjectKey) -> Path | None:
        """Return the directory of an object, for those who read a file in pieces; None if it does not exist."""
        path = self._path(key)
        with disk_errors():
            return path if _ID.fullmatch(key.id) and path.is_dir() and not self._is_expired(path) else None

    def remove(self, key: ObjectKey, name: str) -> None:
        """Remove a file of an object."""
        path = self._path(key) / name
        with disk_errors(), suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._count(0, -_cost(size))

    def delete(self, key: ObjectKey) -> bool:
        """Delete an object; return whether it existed."""
        with disk_errors():
            return _ID.fullmatch(key.id) is not None and self._delete(self._path(key))

    def keys(self, prefix: str, owner: str | None = None) -> list[ObjectKey]:
        """Return the objects whose ids begin with `prefix`, of one owner or all, those that changed last at the end."""
        with disk_errors():
            found = sorted(self._scan(owner), key=lambda each: each.changed)
        return [each.key for each in found if each.path.name.startswith(prefix) and not each.is_expired(self)]

    def claim(self, key: ObjectKey, *, is_new: bool) -> FileLock | None:
        """Return the lock that makes this process the one that works on an unfinished object; None if another has it.

        The claim keeps the object in a full store. It outlives the process, so that the next one finds the object in
        `unfinished`, and claims it with `is_new` False; what has finished in between has no claim to take.
        """
        with disk_errors(), suppress(FileNotFoundError):
            return FileLock.try_acquire(self._claim_path(self._path(key)), create=is_new)
        return None

    def finish(self, key: ObjectKey, claim: FileLock) -> None:
        """Remove the claim: nothing works on the object any more."""
        with disk_errors():
            self._claim_path(self._path(key)).unlink(missing_ok=True)
        claim.close()

    def unfinished(self) -> list[ObjectKey]:
        """Return the objects that have a claim, whether or not a process works on them."""
        with disk_errors():
            names = [claim.name.split("+") for claim in (self._root / _CLAIMS).iterdir()]
        return [ObjectKey(_owner(owner), name) for owner, name in names]

    @contextmanager
    def locked(self, key: ObjectKey) -> Iterator[None]:
        """Exclude other holders of this object's lock, here and in other processes, while it is read and changed."""
        with disk_errors():
            try:
                lock = FileLock.acquire(self._path(key) / "lock") if _ID.fullmatch(key.id) else None
            except FileNotFoundError:
                lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.close()

    def usage(self) -> StoreUsage:
        """Return how many objects there are, and what they take on the disk."""
        with disk_errors():
            try:
                return StoreUsage(*_USAGE.unpack((self._root / "usage").read_bytes()))
            except (FileNotFoundError, struct.error):
                return StoreUsage()

    def sweep(self) -> None:
        """Remove what has expired, and what processes that died left behind; measure the rest."""
        with disk_errors(), self._usage_lock():
            objects = []
            for each in self._scan():
                is_abandoned = not each.bytes and time.time() - each.changed > _EMPTY_SECONDS
                if is_abandoned or each.is_expired(self):
                    _discard(each.path)
                else:
                    objects.append(each)
            # An interrupted deletion.
            for trash in self._root.glob(".trash-*"):
                shutil.rmtree(trash, ignore_errors=True)
            claims = {self._claim_path(each.path) for each in objects}
            for claim in {*(self._root / _CLAIMS).iterdir()} - claims:
                # One that is held is for an object that is about to be written.
                with suppress(FileNotFoundError):
                    lock = FileLock.try_acquire(claim, create=False)
                    if lock is not None:
                        claim.unlink()
                        lock.close()
            self._save_usage(StoreUsage(len(objects), sum(each.bytes for each in objects)))

    def _put(self, key: ObjectKey, name: str, data: bytes, *, must_exist: bool, replace: bool) -> bool:
        path = self._path(key)
        self._require_possible(len(data))
        with disk_errors():
            is_new = not must_exist and _create(path)
            old = (path / name).stat().st_size if (path / name).exists() else None
            if old is not None and not replace:
                return False
            added = _cost(len(data)) - (_cost(old) if old is not None else 0) + _BLOCK_BYTES * is_new
            is_written = False
            try:
                with self._reserved(int(is_new), added):
                    is_written = _write(path / name, data, replace=replace, is_durable=self._is_durable)
                if is_new and self._is_durable:
                    _sync(path.parent)
            except FileNotFoundError:
                # It was deleted meanwhile.
                return False
            finally:
                if is_new and not is_written:
                    _discard(path)
            return is_written

    def _require_possible(self, size: int) -> None:
        if size + 2 * _BLOCK_BYTES > self.max_bytes:
            raise RequestError(f"This has {size} bytes, and the whole store takes {self.max_bytes}.", status=413)

    @contextmanager
    def _reserved(self, objects: int, size: int) -> Iterator[None]:
        """Count what the block adds; not if it fails."""
        self._count(objects, size)
        try:
            yield
        except BaseException:
            self._count(-objects, -size)
            raise

    def _path(self, key: ObjectKey) -> Path:
        return self._owner_path(key.owner) / (key.id if _ID.fullmatch(key.id) else "-")

    def _claim_path(self, path: Path) -> Path:
        return self._root / _CLAIMS / f"{path.parent.name}+{path.name}"

    def _owner_path(self, owner: str) -> Path:
        return self._root / (quote(owner, safe="@") or _NOBODY)

    def _is_expired(self, path: Path) -> bool:
        return time.time() - path.stat().st_mtime > self.keep_seconds

    def _delete(self, path: Path) -> bool:
        found = _measure(path)
        if found is None or not _discard(path):
            return False
        self._claim_path(path).unlink(missing_ok=True)
        self._count(-1, -found.bytes)
        return True

    @contextmanager
    def _usage_lock(self) -> Iterator[None]:
        with FileLock.acquire(self._root / "usage.lock"):
            yield

    def _save_usage(self, usage: StoreUsage) -> None:
        with os.fdopen(os.open(self._root / "usage", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_USAGE.pack(max(usage.objects, 0), max(usage.bytes, 0)))

    def _count(self, objects: int, size: int) -> None:
        """Count what is added or removed; evict the oldest finished objects if the store gets too large."""
        if not objects and not size:
            return
        with self._usage_lock():
            usage = self.usage()
            if size > 0 and usage.bytes + size > self.max_bytes:
                usage = self._evict(usage, size)
            self._save_usage(StoreUsage(usage.objects + objects, usage.bytes + size))

    def _evict(self, usage: StoreUsage, size: int) -> StoreUsage:
        """Remove the oldest finished objects until `size` bytes fit, and some more; return what is left."""
        objects, left = usage.objects, usage.bytes
        target = self.max_bytes * (1 - _EVICTED_SHARE) - size
        for each in sorted(self._scan(), key=lambda each: each.changed):
            if left <= target:
                break
            # What is empty is being created.
            if each.bytes and not self._claim_path(each.path).exists() and _discard(each.path):
                objects, left = objects - 1, left - each.bytes
        if evicted := usage.objects - objects:
            log.warning("store.evicted", directory=self._root.name, objects=evicted, bytes=usage.bytes - left)
        usage = StoreUsage(objects, left)
        self._save_usage(usage)
        if left + size > self.max_bytes:
            raise StoreUnavailableError("The store is full, and none of its objects can be removed to make room.")
        return usage

    def _scan(self, owner: str | None = None) -> Iterator[_Found]:
        for directory in _directories(self._root) if owner is None else [self._owner_path(owner)]:
            for path in _directories(directory):
                if (found := _measure(path)) is not None:
                    yield found


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    changed: float
    bytes: int

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(_owner(self.path.parent.name), self.path.name)

    def is_expired(self, store: StoredObjects) -> bool:
        return time.time() - self.changed > store.keep_seconds


def _owner(directory: str) -> str:
    return "" if directory == _NOBODY else unquote(directory)


def _directories(path: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        yield from [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _measure(path: Path) -> _Found | None:
    """Return what a directory holds; None if it does not exist any more."""
    try:
        with os.scandir(path) as entries:
            size = sum(_cost(entry.stat().st_size) for entry in entries)
        return _Found(path, path.stat().st_mtime, size + _BLOCK_BYTES if size else 0)
    except FileNotFoundError:
        return None


def _cost(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _create(path: Path) -> bool:
    """Create the directory of an object; return whether it is new."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _discard(path: Path) -> bool:
    """Remove a directory at once for all who look for it, then its files."""
    trash = path.parent.parent / f".trash-{uuid.uuid4().hex}"
    try:
        path.rename(trash)
    except FileNotFoundError:
        return False
    shutil.rmtree(trash, ignore_errors=True)
    return True


def _write(path: Path, data: bytes, *, replace: bool, is_durable: bool) -> bool:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        if replace:
            temporary.rename(path)
        else:
            # Unlike a rename, it fails if the name exists.
            os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    if is_durable:
        _sync(path.parent)
    return True


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def decode_stored(key: ObjectKey, data: bytes, type_: type[Stored]) -> Stored:
    """Return the content of a file of an object; raises DamagedObjectError."""
    try:
        return msgspec.json.decode(data, type=type_)
    except (ValueError, RecursionError) as error:
        log.warning("store.damaged", object=key.id, **({"key": key.owner} if key.owner else {}))
        raise DamagedObjectError("A file of the store was changed, and cannot be read.") from error


@contextmanager
def opening(directory: Path, config_key: str) -> Iterator[None]:
    """Raise what keeps a store from being opened as an error of the directory, which a key of the config names."""
    try:
        yield
    except (OSError, StoreUnavailableError) as error:
        cause = error.__cause__ or error
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        remedy = f"{config_key} must be one that this user can write"
        raise ApplianceError(f"{directory}: {reason}; {remedy}") from error


@contextmanager
def exclusive(directory: Path, config_key: str, seconds: float = 5.0) -> Iterator[None]:
    """Keep other servers out of a store's directory during the block; workers of this one share it.

    Processes of a server that was killed may hold it for some `seconds`.

    Raises:
        ApplianceError: another server has it.
    """
    deadline = time.monotonic() + seconds
    with opening(directory, config_key):
        while (lock := FileLock.try_acquire(directory / ".server")) is None:
            if time.monotonic() > deadline:
                remedy = f"{config_key} must be a directory of this server alone"
                raise ApplianceError(f"{directory}: another server uses it; {remedy}")
            time.sleep(_LOCK_POLL_SECONDS)
    with lock:
        yield


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise an OSError as the error of a request; its path is for the log only."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        log.error("store.failed", file=error.filename, reason=reason)
        raise StoreUnavailableError(f"The store of this server fails: {reason}.", retry_after=30) from error
