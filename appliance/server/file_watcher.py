"""Whether files hold something else than what was read.

They are read, not waited for: notifications miss the links that Kubernetes swaps above a file, network disks and
mounted ones have none, and a node runs out of them. A config is small, and so are its secrets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

# What was wrong may have lacked a file that is not among the watched ones.
_RETRY_SECONDS = 5.0

# Reading a wrong file again and again takes a twentieth of one core at most, however long it takes.
_RETRY_SHARE = 20


class FileWatcher:
    """
    Looks at the files that a config was read from; `begin` is called before they are read, `take` after, where it went
    well.
    """

    seconds: ClassVar[float] = 1.0
    """How often to look."""

    def __init__(self, files: Mapping[Path, str]) -> None:
        """`files` are those that were read, each with the SHA-256 of what it held."""
        self._read = dict(files)
        self._seen = self._read
        self._is_good = True
        self._began = time.monotonic()
        self._pause = _RETRY_SECONDS

    def has_changed(self) -> bool:
        """Whether they hold something else, and held it at the last look as well: nobody is still writing.

        Also true now and then where what was read was wrong. Blocks.
        """
        seen, now = self._seen, _digests(self._read)
        self._seen = now
        if now != self._read:
            return now == seen
        return not self._is_good and time.monotonic() - self._began >= self._pause

    def begin(self) -> None:
        """They are being read now, and are wrong until `take` says otherwise."""
        self._read, self._is_good, self._began = _digests(self._read), False, time.monotonic()

    def take(self, files: Mapping[Path, str]) -> None:
        """These were read, and were good."""
        self._read, self._is_good = dict(files), True

    def refuse(self) -> None:
        """They were read, and are wrong; the longer that took, the later they are read again unchanged."""
        self._pause = max(_RETRY_SECONDS, _RETRY_SHARE * (time.monotonic() - self._began))


def _digests(files: Iterable[Path]) -> dict[Path, str]:
    return {file: _digest(file) for file in files}


def _digest(file: Path) -> str:
    try:
        # A pipe or a device could keep us waiting for ever.
        return sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    except OSError:
        return ""
