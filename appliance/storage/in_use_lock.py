"""Artifacts in use: held by a lock that any number of processes share, so that nobody removes them."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from appliance.storage.manifest import MARKER, artifact_of


def hold(path: Path) -> IO[bytes] | None:
    """Keep the artifact that `path` lies in from being pruned until the result is closed, or this process ends.

    Its marker's time of change becomes the time of its last use. None for a path outside the cache, and where files
    cannot be locked: then it is only not kept.
    """
    found = artifact_of(path)
    if found is None:
        return None
    marker = found[0] / MARKER
    # A read-only volume needs no time of use: nobody prunes it.
    with suppress(OSError):
        os.utime(marker)
    try:
        file = marker.open("rb")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def is_held(artifact: Path) -> bool:
    """Whether any process holds an artifact."""
    with suppress(OSError), (artifact / MARKER).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
