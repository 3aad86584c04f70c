"""The cache: a directory of artifacts, each created once, complete or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog

from appliance.core.disk import OnProgress, translate_disk_errors, write_text
from appliance.core.errors import StorageError
from appliance.core.file_lock import FileLock, exclusive_lock
from appliance.core.uri import redact
from appliance.storage import manifest
from appliance.storage.blobs import Blobs
from appliance.storage.manifest import FILES, MARKER

log = structlog.get_logger()

UNFINISHED = ".unfinished"
"""Directory of a cache with the artifacts of interrupted downloads, which the next download resumes."""

# An interrupted download that was not resumed for this long is removed.
_UNFINISHED_MAX_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Cache:
    """A directory of artifacts, shared by every process of this user.

    A complete artifact needs no lock and no writing, so a cache can be a read-only volume.
    """

    root: Path

    @classmethod
    def at(cls, directory: Path | None) -> Cache:
        """Return the cache in `directory`; None is `appliance` under `$XDG_CACHE_HOME` or `~/.cache`."""
        try:
            return cls((directory.expanduser() if directory else _cache_home() / "appliance").absolute())
        except RuntimeError as error:
            raise StorageError(
                f"{directory or '~/.cache/appliance'}: this user has no home directory; "
                "set storage.cache_dir to a directory that can be written"
            ) from error

    @property
    def blobs(self) -> Blobs:
        """The files that artifacts share."""
        return Blobs(self.root / ".blobs")

    def find(self, key: str) -> Path | None:
        """Return the directory with the files of a key if the artifact is complete."""
        artifact = self.root / name_of(key)
        return artifact / FILES if _is_complete(artifact) else None

    def artifacts_of(self, source: str) -> Iterator[Path]:
        """Yield the artifacts whose keys may begin with `source` and a `#`."""
        readable = name_of(source).rpartition("-")[0]
        return self.root.glob(f"{glob.escape(readable)}-*")

    def build(self, key: str, fill: Callable[[Path], None], on_progress: OnProgress) -> Path:
        """Return the files of a key, created by `fill` in an empty directory if they are not in the cache.

        The part of `key` before a `#` becomes the readable part of the directory's name.
        One process at a time runs `fill`; others wait and get the same directory. A failure leaves nothing behind.
        """
        if files := self.find(key):
            return files
        artifact = self.root / name_of(key)
        with self._lock(artifact.name, on_progress):
            if not _is_complete(artifact):
                _remove_damaged(artifact)
                work = _temporary_name(artifact)
                try:
                    with translate_disk_errors(work):
                        (work / FILES).mkdir(parents=True)
                    fill(work / FILES)
                    self.commit(work, key, {}, on_progress)
                except BaseException:
                    shutil.rmtree(work, ignore_errors=True)
                    raise
        return artifact / FILES

    def lock_unfinished(self, key: str, on_progress: OnProgress) -> AbstractContextManager[None]:
        """Return the lock that `open_unfinished` and `commit` of a key require."""
        return self._lock(self._unfinished(key).name, on_progress)

    def open_unfinished(self, key: str) -> Path:
        """Return the directory of an artifact in progress, with what an interrupted or damaged one has.

        It belongs to the part of `key` before the `#`, so that a new revision can reuse what an older one has.
        """
        artifact, work = self.root / name_of(key), self._unfinished(key)
        _remove_abandoned(work)
        if artifact.exists() and not work.exists():
            _log_damage(artifact)
            with translate_disk_errors(work):
                work.parent.mkdir(exist_ok=True)
                artifact.rename(work)
        _remove_damaged(artifact)
        with translate_disk_errors(work):
            (work / FILES).mkdir(parents=True, exist_ok=True)
            (work / MARKER).unlink(missing_ok=True)
            work.touch()
        return work

    def commit(
        self,
        work: Path,
        key: str,
        digests: Mapping[str, str],
        on_progress: OnProgress,
        *,
        verified_by_size_only: Sequence[str] = (),
    ) -> Path:
        """Write the manifest of an artifact in progress, make it visible by one rename, and return its files.

        `digests` has the SHA-256 of files that are hashed and synced already.
        """
        artifact = self.root / name_of(key)
        contents = manifest.write(work, redact(key), digests, on_progress, verified_by_size_only)
        size = sum(info.size for info in contents.files.values())
        known = {name: info.sha256 for name, info in contents.files.items() if info.sha256}
        self.blobs.share(work / FILES, known, lambda *_: on_progress(size, size))
        with translate_disk_errors(artifact):
            work.rename(artifact)
        manifest.sync_directory(self.root)
        return artifact / FILES

    def write_note(self, key: str, text: str) -> None:
        """Keep a short text under a key; in a read-only cache nothing is kept."""
        notes = self.root / ".notes"
        with suppress(OSError):
            notes.mkdir(exist_ok=True)
            write_text(notes / name_of(key), text)

    def read_note(self, key: str) -> str | None:
        """Return the text that is kept under a key."""
        try:
            return (self.root / ".notes" / name_of(key)).read_text()
        except (OSError, ValueError):
            return None

    def lock_file(self, name: str) -> Path:
        """Return the path of the lock with this name; its directory exists."""
        directory = self.root / ".locks"
        with translate_disk_errors(self.root):
            directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{name}.lock"

    def _lock(self, name: str, on_progress: OnProgress) -> AbstractContextManager[None]:
        return exclusive_lock(self.lock_file(name), on_progress)

    def _unfinished(self, key: str) -> Path:
        return self.root / UNFINISHED / name_of(key.partition("#")[0])


def name_of(key: str) -> str:
    """Return the directory name of a key: readable, and unique by a digest."""
    unique = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", redact(key).rpartition("://")[2].partition("#")[0])
    return f"{readable[:80].strip('-.') or 'artifact'}-{unique}"


def invalidate(path: Path) -> None:
    """Make the artifact that contains `path` unfinished again, so that the next download repairs it."""
    if found := manifest.artifact_of(path):
        with translate_disk_errors(found[0]):
            (found[0] / MARKER).unlink(missing_ok=True)


def hold(path: Path) -> FileLock | None:
    """Protect the artifact that contains `path` from `prune` until the result is closed or this process ends.

    The modification time of its manifest becomes the time of its last use. None for a path outside the cache, and where
    files cannot be locked.
    """
    found = manifest.artifact_of(path)
    if found is None:
        return None
    marker = found[0] / MARKER
    # On a read-only volume nothing is pruned, so the time of use does not matter.
    with suppress(OSError):
        os.utime(marker)
    try:
        return FileLock.try_acquire(marker, shared=True, create=False)
    except OSError:
        return None


def is_held(artifact: Path) -> bool:
    """Return whether any process holds an artifact."""
    with suppress(OSError):
        if (lock := FileLock.try_acquire(artifact / MARKER, create=False)) is None:
            return True
        lock.close()
    return False


def _cache_home() -> Path:
    # The XDG base directory specification says to ignore relative paths.
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return home if home.is_absolute() else Path.home() / ".cache"


def _is_complete(artifact: Path) -> bool:
    with translate_disk_errors(artifact):
        contents = manifest.read(artifact)
    return contents is not None and not contents.damaged_files(artifact / FILES)


def _remove_damaged(artifact: Path) -> None:
    """Remove a damaged artifact, and what a killed `build` left behind."""
    if artifact.exists():
        _log_damage(artifact)
        # Renamed first: a half removed artifact must not have the name of a complete one.
        with translate_disk_errors(artifact):
            artifact.rename(_temporary_name(artifact))
    for leftover in artifact.parent.glob(f"{artifact.name}.incomplete-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _log_damage(artifact: Path) -> None:
    with translate_disk_errors(artifact):
        contents = manifest.read(artifact)
    files = contents.damaged_files(artifact / FILES) if contents else None
    log.warning("artifact.damaged", artifact=artifact.name, files=files)


def _temporary_name(artifact: Path) -> Path:
    # A new name each time: a child of a killed `build` may write to the old one for a moment longer.
    return artifact.with_name(f"{artifact.name}.incomplete-{uuid4().hex[:8]}")


def _remove_abandoned(work: Path) -> None:
    """Remove old unfinished artifacts other than `work`, which is about to be resumed."""
    for stale in work.parent.glob("*"):
        with suppress(OSError):
            if stale != work and time.time() - stale.stat().st_mtime > _UNFINISHED_MAX_SECONDS:
                log.info("artifact.abandoned", artifact=stale.name)
                shutil.rmtree(stale, ignore_errors=True)
