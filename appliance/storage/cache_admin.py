"""Listing, checking and pruning of a cache."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from appliance.core.disk import OnProgress, ignore_progress, translate_disk_errors
from appliance.core.file_lock import FileLock
from appliance.storage import manifest
from appliance.storage.cache import UNFINISHED, Cache, is_held, name_of
from appliance.storage.manifest import FILES, MARKER

# Suffix of what a killed `Cache.build` leaves.
_LEFTOVER = re.compile(r"\.incomplete-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class CachedArtifact:
    """One directory of a cache: `source` is its URI without secrets, None for an artifact that is not complete.

    `used` is when it was last served or pulled, in seconds since 1970. `size` counts shared files in full.
    """

    path: Path
    source: str | None
    size: int
    files: int
    used: float

    @property
    def uri(self) -> str:
        """The URI for people."""
        return (self.source or "").partition("#")[0] or "unfinished"

    @property
    def is_finished(self) -> bool:
        """Whether it was complete once."""
        return self.path.parent.name != UNFINISHED and not _LEFTOVER.search(self.path.name)

    @property
    def age(self) -> float:
        """Seconds since it was last used."""
        return max(0.0, time.time() - self.used)


def list_artifacts(cache: Cache) -> list[CachedArtifact]:
    """Return all artifacts of a cache, finished or not, the last used first."""
    finished = [path for path in _directories(cache.root) if not path.name.startswith(".")]
    found = map(_describe, [*finished, *_directories(cache.root / UNFINISHED)])
    return sorted(found, key=lambda artifact: -artifact.used)


def damaged_files(artifact: CachedArtifact, on_progress: OnProgress = ignore_progress) -> list[str]:
    """Return the names of files that are missing or not as they were stored, after reading every byte."""
    contents = manifest.read(artifact.path)
    if contents is None:
        return [MARKER]
    files = artifact.path / FILES
    return contents.damaged_files(files) or contents.altered_files(files, on_progress)


def select_prunable(
    artifacts: Sequence[CachedArtifact], age: float | None, size: int | None, keep: Collection[Path]
) -> list[CachedArtifact]:
    """Return all unfinished artifacts, those not used for `age` seconds, and the least recently used until at most
    `size` bytes are left; None is no such limit. Those in `keep` stay.
    """
    candidates = sorted((artifact for artifact in artifacts if artifact.path not in keep), key=lambda a: a.used)
    chosen = [a for a in candidates if a.source is None or (age is not None and a.age >= age)]
    left = sum(a.size for a in artifacts) - sum(a.size for a in chosen)
    for artifact in candidates:
        if size is not None and left > size and artifact not in chosen:
            chosen.append(artifact)
            left -= artifact.size
    return chosen


def remove(cache: Cache, artifact: CachedArtifact) -> bool:
    """Remove an artifact unless a process uses or creates it, and return whether it was removed."""
    with ExitStack() as locks:
        are_free = [_lock(cache, name, locks) for name in _lock_names(artifact)]
        if not all(are_free) or is_held(artifact.path):
            return False
        # Renamed first: a half removed artifact must not have the name of a complete one.
        removed = artifact.path
        if not _LEFTOVER.search(removed.name):
            removed = cache.root / f"{artifact.path.name}.incomplete-00000000"
            with translate_disk_errors(removed):
                artifact.path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        return not removed.exists()


def _lock(cache: Cache, name: str, locks: ExitStack) -> bool:
    """Acquire a lock into `locks` if nobody else holds it, and return whether it was free."""
    path = cache.lock_file(name)
    with translate_disk_errors(path):
        lock = FileLock.try_acquire(path)
    if lock is not None:
        locks.enter_context(lock)
    return lock is not None


def _directories(root: Path) -> Iterator[Path]:
    if root.exists():
        with translate_disk_errors(root):
            yield from sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())


def _describe(path: Path) -> CachedArtifact:
    contents = None if _LEFTOVER.search(path.name) else manifest.read(path)
    files = [file for file in (path / FILES).rglob("*") if file.is_file()]
    marker = path / MARKER
    return CachedArtifact(
        path=path,
        source=contents.source if contents else None,
        size=sum(file.stat().st_size for file in files),
        files=len(files),
        used=(marker if marker.exists() else path).stat().st_mtime,
    )


def _lock_names(artifact: CachedArtifact) -> Collection[str]:
    """Return the names of the locks that are held while this artifact is created."""
    name = _LEFTOVER.sub("", artifact.path.name)
    return {name} if artifact.source is None else {name, name_of(artifact.source.partition("#")[0])}
