"""A private directory in memory for what lives as long as the server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.core.file_lock import FileLock

# Linux's file system in memory. The small one of a container is left to engines.
_MEMORY = Path("/dev/shm")  # noqa: S108 - the directory in it is private and has a random name
_SPARE_FACTOR = 4

# Held as long as the server or one of its workers lives.
_LOCK = "alive"


@contextmanager
def memory_directory(name: str, max_bytes: int) -> Iterator[Path]:
    """Create a directory for the block that only this user can enter: in memory if `max_bytes` fit there well,
    otherwise on the disk. Those of servers that were killed are removed.
    """
    prefix = f"appliance-{name}-"
    places = [Path(tempfile.gettempdir())]
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        places.append(_MEMORY)
    for place in places:
        _remove_abandoned(place, prefix)
    has_room = shutil.disk_usage(places[-1]).free >= _SPARE_FACTOR * max_bytes
    made = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=places[-1 if has_room else 0]))
    # Others may remove it by its prefix as soon as it has a file that nobody has locked.
    with FileLock.acquire(made / _LOCK):
        directory = made.rename(made.with_name(made.name.removeprefix(".")))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_abandoned(place: Path, prefix: str) -> None:
    for directory in place.glob(f"{prefix}*"):
        # Another user's, or removed meanwhile.
        with suppress(OSError):
            lock = FileLock.try_acquire(directory / _LOCK, create=False)
            if lock is not None and directory.stat().st_uid == os.getuid():
                shutil.rmtree(directory, ignore_errors=True)
                lock.close()
