"""One builder at a time, over threads and processes."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from appliance.storage.disk_errors import disk_faults
from appliance.storage.private_directory import write_text

log = structlog.get_logger()

# How long a wait may go without asking whether it is still wanted.
TICK_SECONDS = 0.5

# How often who waits says for whom.
_TELL_SECONDS = 30.0


@contextmanager
def exclusively(path: Path, tick: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file at `path`; the kernel frees it when its owner dies, however it dies.

    While another holds it, `tick` is called every half second and may raise to stop the wait.
    """
    lock = FileLock(path)
    owner = path.with_suffix(".owner")
    told = -math.inf
    while not _acquire(lock, path):
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            log.info("artifact.awaited", artifact=path.stem, **_read(owner))
        tick()
    try:
        if dead := _read(owner):
            log.warning("artifact.taken_over", artifact=path.stem, **dead)
        _sign(owner)
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        lock.release()


def _acquire(lock: FileLock, path: Path) -> bool:
    with disk_faults(path):
        try:
            lock.acquire(timeout=TICK_SECONDS, poll_interval=0.1)
        except Timeout:
            return False
        return True


def _sign(owner: Path) -> None:
    """Say who holds the lock, for those who wait; only a courtesy, so a full disk does not matter here."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(OSError):
        facts = {"owner_pid": os.getpid(), "owner_host": socket.gethostname(), "since": since}
        write_text(owner, json.dumps(facts))


def _read(owner: Path) -> Mapping[str, object]:
    """Who signed last, since when and for how many seconds; one who died did not take the signature back."""
    try:
        data = json.loads(owner.read_text())
        facts = {name: data[name] for name in ("owner_pid", "owner_host", "since")}
        age = datetime.now(UTC) - datetime.fromisoformat(facts["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {**facts, "held_seconds": round(age.total_seconds())}
