"""
The directory where fetched and converted models are kept, each made exactly once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import structlog

from appliance.errors import StorageError
from appliance.storage import manifest
from appliance.storage.faults import disk_faults
from appliance.storage.locks import exclusively
from appliance.storage.manifest import FILES
from appliance.storage.uri import redact

log = structlog.get_logger()

Report = Callable[[int, int | None], None]
"""
Hears how far the work is: bytes done, and bytes in all or None when unknown.

It is called every second or so, also while nothing moves, and may raise to stop the work: then everything is cleaned
up, and the exception passes through.
"""


@dataclass(frozen=True, slots=True)
class Cache:
    """
    A directory of artifacts, shared by every process of this user.

    An artifact is `NAME/files/...` with a manifest beside `files`; it appears by one rename, complete or not at all.
    """

    root: Path

    @classmethod
    def at(cls, directory: Path | None) -> Cache:
        """
        The cache in `directory`; None is `appliance` under `$XDG_CACHE_HOME`, or under `~/.cache`.

        Raises:
            StorageError: there is no home directory to put it in.
        """
        try:
            return cls((directory.expanduser() if directory else _cache_home() / "appliance").absolute())
        except RuntimeError as error:
            raise StorageError(
                f"{directory or '~/.cache/appliance'}: this user has no home directory; "
                "set storage.cache_dir to a directory that can be written"
            ) from error

    def build(self, key: str, make: Callable[[Path], None], report: Report) -> Path:
        """
        The directory for `key`, made now if it is not there yet, or not whole.

        The part of `key` before a `#` names the directory for people; all of it tells it from others.
        `make` fills the empty directory it is given. It runs in one process at a time; whoever comes meanwhile waits
        and gets the same directory.
        A complete artifact needs no lock and no writing, so a cache can be a read-only volume.

        Raises:
            StorageError: the cache cannot be written.
        """
        if files := self.find(key):
            return files
        place = self.root / _name(key)
        locks = self.root / ".locks"
        with disk_faults(self.root):
            locks.mkdir(parents=True, exist_ok=True)
        with exclusively(locks / f"{place.name}.lock", partial(report, 0, None)):
            if not _is_whole(place):
                _clear(place)
                _make(place, key, make, report)
        return place / FILES

    def find(self, key: str) -> Path | None:
        """
        The directory for `key` if it was made and is whole.
        """
        place = self.root / _name(key)
        return place / FILES if _is_whole(place) else None

    def note(self, question: str, answer: str) -> None:
        """
        Keep a short answer for a day when nobody gives it; only a courtesy, so a read-only cache does not matter.
        """
        place = self._notes / _name(question)
        with suppress(OSError):
            self._notes.mkdir(exist_ok=True)
            place.write_text(answer)

    def noted(self, question: str) -> str | None:
        """
        The answer kept for `question`, if there is one.
        """
        try:
            return (self._notes / _name(question)).read_text()
        except (OSError, ValueError):
            return None

    @property
    def _notes(self) -> Path:
        return self.root / ".notes"


def _cache_home() -> Path:
    # The XDG base directory specification wants relative paths ignored.
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return home if home.is_absolute() else Path.home() / ".cache"


def _name(key: str) -> str:
    """
    A directory name for people, made unique by a digest.
    """
    unique = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", redact(key).rpartition("://")[2].partition("#")[0])
    return f"{readable[:80].strip('-.') or 'artifact'}-{unique}"


def _is_whole(place: Path) -> bool:
    with disk_faults(place):
        contents = manifest.read(place)
    return contents is not None and not contents.damage(place / FILES)


def _clear(place: Path) -> None:
    """
    Remove a damaged artifact, and what a builder that was killed left behind.
    """
    if place.exists():
        with disk_faults(place):
            contents = manifest.read(place)
        log.warning("artifact.damaged", artifact=place.name, files=contents.damage(place / FILES) if contents else None)
        # Renamed first: a half removed artifact must not bear the name of a whole one.
        with disk_faults(place):
            place.rename(_incomplete(place))
    for leftover in place.parent.glob(f"{place.name}.incomplete-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _incomplete(place: Path) -> Path:
    # A new name each time: a child of a killed builder may write to the old one for a moment longer.
    return place.with_name(f"{place.name}.incomplete-{uuid4().hex[:8]}")


def _make(place: Path, key: str, make: Callable[[Path], None], report: Report) -> None:
    temporary = _incomplete(place)
    try:
        with disk_faults(temporary):
            (temporary / FILES).mkdir(parents=True)
        make(temporary / FILES)
        size = manifest.size_of(temporary / FILES)
        manifest.seal(temporary, redact(key), partial(report, size, size))
        with disk_faults(place):
            temporary.rename(place)
        manifest.sync_directory(place.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
