"""Files in directories that others may write to: no link of theirs is followed, and nothing of theirs is run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from appliance.core.errors import StorageError


def make_private(directory: Path) -> None:
    """Make a directory below others that exist, or accept the one that is there if it is private.

    Others could exchange it by its name where they may write to a directory above it. A mount point may be writable for
    all, as Kubernetes' `emptyDir` is: it is there for its own pod.

    Raises:
        StorageError: it is a link, belongs to another user, or others can write to it or exchange it.
        OSError: it cannot be made.
    """
    for above in (directory.parent, *directory.parent.parents):
        if _is_shared(above) and not os.path.ismount(above):
            raise StorageError(f"{above}: every user can exchange what lies there; run: chmod o-w {above}")
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if directory.is_symlink():
            raise StorageError(f"{directory}: is a link; must be a directory of its own, so remove it") from error
        raise
    try:
        facts = os.fstat(handle)
    finally:
        os.close(handle)
    if facts.st_uid != os.getuid():
        raise StorageError(f"{directory}: belongs to user {facts.st_uid}; must belong to {os.getuid()}, so remove it")
    # Kubernetes lets a group of its own write to a volume.
    if facts.st_mode & stat.S_IWOTH:
        raise StorageError(f"{directory}: every user can write there; remove it, as what lies there is run")


def write_text(path: Path, text: str) -> None:
    """Write a small file, and never through a link that somebody else put in its place.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _is_shared(directory: Path) -> bool:
    """Whether every user can rename what lies in it; a sticky directory lets only owners."""
    mode = directory.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
