"""Disks: errors of the operating system with a remedy, free space, and directories that others may write to."""

from __future__ import annotations

import errno
import os
import shutil
import stat
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
    """Check that `size` bytes fit on the disk of a directory."""
    with translate_disk_errors(directory):
        free = shutil.disk_usage(directory).free
    if size > free:
        raise NoSpaceError(f"{directory}: {size:,} bytes to write, and {free:,} free; {_FREE_SPACE}")


def make_private(directory: Path) -> None:
    """Create a directory in an existing one, or accept one that is private.

    Others could exchange it if they may write to a directory above it. A mount point may be writable for all, as
    Kubernetes' `emptyDir` is: it belongs to its pod alone.

    Raises:
        StorageError: it is a link, belongs to another user, or others can write to it or exchange it.
        OSError: it cannot be created.
    """
    for parent in (directory.parent, *directory.parent.parents):
        if _is_shared(parent) and not os.path.ismount(parent):
            raise StorageError(f"{parent}: every user can exchange its contents; run: chmod o-w {parent}")
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if directory.is_symlink():
            raise StorageError(f"{directory}: is a link; must be a directory, so remove it") from error
        raise
    try:
        facts = os.fstat(handle)
    finally:
        os.close(handle)
    if facts.st_uid != os.getuid():
        raise StorageError(f"{directory}: belongs to user {facts.st_uid}; must belong to {os.getuid()}, so remove it")
    # Kubernetes allows the group of a pod to write to a volume.
    if facts.st_mode & stat.S_IWOTH:
        raise StorageError(f"{directory}: every user can write to it, and its files are run; remove it")


def write_text(path: Path, text: str) -> None:
    """Write a small file, and not through a link that someone else put in its place.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _is_shared(directory: Path) -> bool:
    """Return whether every user can rename its contents; in a sticky directory only their owners can."""
    mode = directory.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
