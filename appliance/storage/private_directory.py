"""Files in directories that others may write to: their links are not followed, and their files are not run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from appliance.core.errors import StorageError


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
