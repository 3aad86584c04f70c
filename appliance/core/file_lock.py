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
from types import TracebackType
from typing import Self

import structlog

from appliance.core.disk import translate_disk_errors, write_text
from appliance.core.progress import OnProgress

log = structlog.get_logger()

_POLL_SECONDS = 0.1
_PROGRESS_INTERVAL_SECONDS = 0.5
_LOG_INTERVAL_SECONDS = 30.0


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
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            os.close(handle)
            raise
        return cls(handle)

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def exclusive_lock(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Wait for the exclusive lock on `path` and hold it; `on_progress` is called during the wait.

    A file beside it names the owner for the log messages of those who wait.
    """
    owner_file = path.with_suffix(".owner")
    with _wait_for(path, owner_file, on_progress):
        if dead := _read_owner(owner_file):
            log.warning("lock.recovered", lock=path.stem, **dead)
        _write_owner(owner_file)
        try:
            yield
        finally:
            with suppress(OSError):
                owner_file.unlink()


def _wait_for(path: Path, owner_file: Path, on_progress: OnProgress) -> FileLock:
    last_logged: float | None = None
    while (lock := _poll(path)) is None:
        now = time.monotonic()
        if last_logged is None or now - last_logged > _LOG_INTERVAL_SECONDS:
            last_logged = now
            log.info("lock.contended", lock=path.stem, **_read_owner(owner_file))
        on_progress(0, None)
    return lock


def _poll(path: Path) -> FileLock | None:
    """Try to acquire a lock for half a second."""
    deadline = time.monotonic() + _PROGRESS_INTERVAL_SECONDS
    with translate_disk_errors(path):
        while (lock := FileLock.try_acquire(path)) is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    return lock


def _write_owner(owner_file: Path) -> None:
    """Record who holds the lock. It only serves log messages, so a full disk does not matter."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(OSError):
        owner = {"owner_pid": os.getpid(), "owner_host": socket.gethostname(), "since": since}
        write_text(owner_file, json.dumps(owner))


def _read_owner(owner_file: Path) -> Mapping[str, object]:
    """Return the recorded owner and how long it has held the lock; a killed owner leaves its record behind."""
    try:
        data = json.loads(owner_file.read_text())
        facts = {name: data[name] for name in ("owner_pid", "owner_host", "since")}
        age = datetime.now(UTC) - datetime.fromisoformat(facts["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {**facts, "held_seconds": round(age.total_seconds())}
