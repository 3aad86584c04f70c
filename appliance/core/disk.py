"""Files on disk: progress of work on them, digests, errors with a remedy, directories that others cannot change."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.core.errors import NoSpaceError, StorageError

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in total, None when the total is unknown.

It is called at least once a second, also while nothing moves: `(0, None)` stands for work without a byte count, such as
waiting for a lock. It may raise to cancel the work; what cannot be resumed is removed, and the exception passes through
unchanged.
"""

_BLOCK_BYTES = 1 << 20

_FREE_SPACE = "free some space, or point storage.cache_dir at a larger disk"
_CHANGE_MODE = "change its owner or mode, or point storage.cache_dir at a directory this user can write"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

_REMEDIES = {
    **dict.fromkeys(_NO_SPACE, _FREE_SPACE),
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or point storage.cache_dir at another disk",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _CHANGE_MODE),
}


def ignore_progress(_done: int, _total: int | None) -> None:
    """Do nothing."""


def sha256_of(path: Path, on_progress: OnProgress = ignore_progress) -> str:
    """Return the SHA-256 of a file in hex; `on_progress` is called for each megabyte."""
    state = hashlib.sha256()
    for block in _read_blocks(path):
        state.update(block)
        on_progress(0, None)
    return state.hexdigest()


def _read_blocks(path: Path) -> Iterator[bytes]:
    with translate_disk_errors(path), path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Raise an OSError about `path` as a StorageError; never around a callback, whose exceptions are the caller's."""
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
        mode = parent.stat().st_mode
        # In a sticky directory only their owners can rename its contents.
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and not os.path.ismount(parent):
            raise StorageError(f"{parent}: every user can exchange its contents; run: chmod o-w {parent}")
    directory.mkdir(mode=0o700, exist_ok=True)
    facts = directory.lstat()
    if stat.S_ISLNK(facts.st_mode):
        raise StorageError(f"{directory}: is a link; must be a directory, so remove it")
    if facts.st_uid != os.getuid():
        raise StorageError(f"{directory}: belongs to user {facts.st_uid}; must belong to {os.getuid()}, so remove it")
    # Kubernetes allows the group of a pod to write to a volume.
    if facts.st_mode & stat.S_IWOTH:
        raise StorageError(f"{directory}: every user can write to it, and its files are run; remove it")


def write_text(path: Path, text: str) -> None:
    """Write a small file; raises OSError if it cannot be written, or someone else put a link in its place."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
