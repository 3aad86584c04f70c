"""What a disk refuses, in words a user can act on."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.core.errors import NoSpaceError, StorageError

_FULL = "free some space, or point storage.cache_dir at a larger disk"
_FORBIDDEN = "change its owner or mode, or point storage.cache_dir at a directory this user can write"

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

REMEDIES = {
    **dict.fromkeys(FULL, _FULL),
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or point storage.cache_dir at another disk",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
}


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn an OSError of work on `path` into a StorageError.

    Goes around single operations and never around a callback: what a callback raises is its caller's.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        remedy = REMEDIES.get(number, "check the disk and the directory")
        kind = NoSpaceError if number in FULL else StorageError
        raise kind(f"{path}: {error.strerror or error}; {remedy}") from error


def check_room(size: int, directory: Path) -> None:
    """Return when `size` bytes fit on the disk of a directory.

    Raises:
        NoSpaceError: they do not.
    """
    with disk_faults(directory):
        free = shutil.disk_usage(directory).free
    if size > free:
        raise NoSpaceError(f"{directory}: {size:,} bytes to write, and {free:,} free; {_FULL}")
