"""The directory where fetched and converted models are kept, each made exactly once."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.core.errors import StorageError
from appliance.core.uri import redact
from appliance.storage.artifact import UNFINISHED, Report, build, is_whole, resume
from appliance.storage.disk_errors import disk_faults
from appliance.storage.locks import exclusively
from appliance.storage.manifest import FILES
from appliance.storage.private_directory import write_text

__all__ = ["Cache", "Report"]


@dataclass(frozen=True, slots=True)
class Cache:
    """A directory of artifacts, shared by every process of this user.

    An artifact is `NAME/files/...` with a manifest beside `files`; it appears by one rename, complete or not at all.
    """

    root: Path

    @classmethod
    def at(cls, directory: Path | None) -> Cache:
        """The cache in `directory`; None is `appliance` under `$XDG_CACHE_HOME`, or under `~/.cache`.

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
        """The directory for `key`, made now if it is not there yet, or not whole.

        The part of `key` before a `#` names the directory for people; all of it tells it from others.
        `make` fills the empty directory it is given. It runs in one process at a time; whoever comes meanwhile waits
        and gets the same directory.
        A complete artifact needs no lock and no writing, so a cache can be a read-only volume.

        Raises:
            StorageError: the cache cannot be written.
        """
        place = self.root / name_of(key)
        return self.find(key) or self._alone(place, place.name, report, lambda: build(place, redact(key), make, report))

    def resume(self, key: str, make: Callable[[Path], Mapping[str, str]], report: Report) -> Path:
        """Like `build`, but what `make` leaves when it fails or is killed is given to it again the next time.

        That is found by the part of `key` before the `#`, so that what follows it may be a state that changes: `make`
        has to see what of the old one is of use. It returns the SHA-256 of files that it knows, by their names.
        An artifact that is damaged becomes unfinished again.

        Raises:
            StorageError: the cache cannot be written.
        """
        place, work = self.root / name_of(key), self.root / UNFINISHED / name_of(key.partition("#")[0])
        return self.find(key) or self._alone(
            place, work.name, report, lambda: resume(place, work, redact(key), make, report)
        )

    def _alone(self, place: Path, lock: str, report: Report, work: Callable[[], None]) -> Path:
        """Do the work that makes `place`, unless another process has done it while we waited for the lock."""
        locks = self.root / ".locks"
        with disk_faults(self.root):
            locks.mkdir(parents=True, exist_ok=True)
        with exclusively(locks / f"{lock}.lock", partial(report, 0, None)):
            if not is_whole(place):
                work()
        return place / FILES

    def find(self, key: str) -> Path | None:
        """The directory for `key` if it was made and is whole."""
        place = self.root / name_of(key)
        return place / FILES if is_whole(place) else None

    def states(self, place: str) -> Iterator[Path]:
        """The artifacts whose keys may begin with `place` and a `#`."""
        readable = name_of(place).rpartition("-")[0]
        return self.root.glob(f"{glob.escape(readable)}-*")

    def note(self, question: str, answer: str) -> None:
        """Keep a short answer for a day when nobody gives it; only a courtesy, so a read-only cache does not matter."""
        place = self._notes / name_of(question)
        with suppress(OSError):
            self._notes.mkdir(exist_ok=True)
            write_text(place, answer)

    def noted(self, question: str) -> str | None:
        """The answer kept for `question`, if there is one."""
        try:
            return (self._notes / name_of(question)).read_text()
        except (OSError, ValueError):
            return None

    @property
    def _notes(self) -> Path:
        return self.root / ".notes"


def _cache_home() -> Path:
    # The XDG base directory specification wants relative paths ignored.
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return home if home.is_absolute() else Path.home() / ".cache"


def name_of(key: str) -> str:
    """The name of the artifact for a key: a directory name for people, made unique by a digest."""
    unique = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", redact(key).rpartition("://")[2].partition("#")[0])
    return f"{readable[:80].strip('-.') or 'artifact'}-{unique}"
