"""Locks on files, between threads and processes: exclusive, or shared by any number of holders."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import structlog

from appliance.core.disk import OnProgress, translate_disk_errors, write_text

log = structlog.get_logger()

_POLL_SECONDS = 0.1

# In polls: a wait is reported every half second, and logged every 30 seconds.
_PROGRESS_INTERVAL = 5
_LOG_INTERVAL = 300


class FileLock:
    """A held flock(2) lock; the kernel releases it when the process ends, however it ends."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @classmethod
    def try_acquire(cls, path: Path, *, shared: bool = False, create: bool = True) -> FileLock | None:
        """Return the lock on a file, or None while another holder excludes it.

        Without `create` the file must exist, and may be on a read-only volume.

        Raises:
            OSError: the file cannot be opened, is a symbolic link, or its file system has no locks.
        """
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        # Every lock opens the file anew: locks belong to open files, so threads exclude one another too.
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        lock = cls(handle)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            if isinstance(error, BlockingIOError):
                return None
            raise
        return lock

    @classmethod
    def acquire(cls, path: Path) -> FileLock:
        """Return the exclusive lock on a file; waits, so it is for locks that are held for moments. Raises OSError."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        lock = cls(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            lock.close()
            raise
        return lock

    def close(self) -> None:
        """Release the lock; safe to call twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        # The result of a thread may come when nobody waits for it any more.
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def exclusive_lock(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Wait for the lock on `path` and hold it; a file beside it names the owner for the log of those who wait."""
    owner_file = path.with_suffix(".owner")
    with _wait_for(path, owner_file, on_progress):
        if dead := _read_owner(owner_file):
            log.warning("lock.recovered", lock=path.stem, **dead)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"owner_pid": os.getpid(), "owner_host": socket.gethostname(), "since": since}
        # A full disk does not matter.
        with suppress(OSError):
            write_text(owner_file, json.dumps(owner))
        try:
            yield
        finally:
            with suppress(OSError):
                owner_file.unlink()


def _wait_for(path: Path, owner_file: Path, on_progress: OnProgress) -> FileLock:
    polls = 0
    while True:
        with translate_disk_errors(path):
            if (lock := FileLock.try_acquire(path)) is not None:
                return lock
        # A wait of less than half a second is not worth an event.
        if polls % _LOG_INTERVAL == _PROGRESS_INTERVAL:
            log.info("lock.contended", lock=path.stem, **_read_owner(owner_file))
        if polls and polls % _PROGRESS_INTERVAL == 0:
            on_progress(0, None)
        time.sleep(_POLL_SECONDS)
        polls += 1


def _read_owner(owner_file: Path) -> Mapping[str, object]:
    """Return the recorded owner and how long it has held the lock; a killed owner leaves its record behind."""
    try:
        data = json.loads(owner_file.read_text())
        facts = {name: data[name] for name in ("owner_pid", "owner_host", "since")}
        age = datetime.now(UTC) - datetime.fromisoformat(facts["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {**facts, "held_seconds": round(age.total_seconds())}
