"""Errors of the operating system about a disk, as storage errors with a remedy."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.core.errors import NoSpaceError, StorageError

_FREE_SPACE = "free some space, or point storage.cache_dir at a larger disk"
_CHANGE_MODE = "change its owner or mode, or point storage.cache_dir at a directory this user can write"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

_REMEDIES = {
    **dict.fromkeys(_NO_SPACE, _FREE_SPACE),
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or point storage.cache_dir at another disk",
    errno.EACCES: _CHANGE_MODE,
    errno.EPERM: _CHANGE_MODE,
    errno.EROFS: _CHANGE_MODE,
}


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Raise an OSError about `path` as a StorageError.

    It surrounds single operations and never a callback, whose exceptions belong to the caller.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        remedy = _REMEDIES.get(number, "check the disk and the directory")
        kind = NoSpaceError if number in _NO_SPACE else StorageError
        raise kind(f"{path}: {error.strerror or error}; {remedy}") from error


def require_free_space(size: int, directory: Path) -> None:
    """Check that `size` bytes fit on the disk of a directory.

    Raises:
        NoSpaceError: they do not.
    """
    with translate_disk_errors(directory):
        free = shutil.disk_usage(directory).free
    if size > free:
        raise NoSpaceError(f"{directory}: {size:,} bytes to write, and {free:,} free; {_FREE_SPACE}")
