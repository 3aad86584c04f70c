"""What a cache holds, whether it is whole, and what may be removed."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from appliance.storage import manifest
from appliance.storage.artifact import UNFINISHED
from appliance.storage.cache import Cache, name_of
from appliance.storage.disk_errors import disk_faults
from appliance.storage.in_use_lock import is_held
from appliance.storage.manifest import FILES, MARKER

# What a killed builder leaves beside the artifact it was to be.
_LEFTOVER = re.compile(r"\.incomplete-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class CachedArtifact:
    """One directory of a cache: `source` is its URI without secrets, or None where nothing whole lies there.

    `used` is when it was last served or pulled, in seconds since 1970; files it shares count in full.
    """

    path: Path
    source: str | None
    size: int
    files: int
    used: float

    @property
    def uri(self) -> str:
        """Where it came from, for people."""
        return (self.source or "").partition("#")[0] or "unfinished"

    @property
    def is_finished(self) -> bool:
        """Whether it was whole once."""
        return self.path.parent.name != UNFINISHED and not _LEFTOVER.search(self.path.name)

    @property
    def age(self) -> float:
        """Seconds since it was last used."""
        return max(0.0, time.time() - self.used)


@dataclass(frozen=True, slots=True)
class PruneRule:
    """
    What may be removed: what was not used for `age` seconds, and as much as is needed to leave `size` bytes, first what
    was not used for longest; None is no such limit. What `keep` names stays.
    """

    age: float | None = None
    size: int | None = None
    keep: frozenset[Path] = frozenset()


def artifacts(cache: Cache) -> list[CachedArtifact]:
    """Everything in a cache, finished or not, the last used first."""
    finished = [path for path in _directories(cache.root) if not path.name.startswith(".")]
    found = map(_artifact, [*finished, *_directories(cache.root / UNFINISHED)])
    return sorted(found, key=lambda artifact: -artifact.used)


def damage(artifact: CachedArtifact, tick: Callable[[], None] = lambda: None) -> list[str]:
    """Names of the files that are missing or not as they were stored, after every byte was read."""
    contents = manifest.read(artifact.path)
    if contents is None:
        return [MARKER]
    return contents.damage(artifact.path / FILES) or contents.altered(artifact.path / FILES, tick)


def unwanted(found: Sequence[CachedArtifact], wish: PruneRule) -> list[CachedArtifact]:
    """What a wish lets go, and all unfinished work; the longest unused first."""
    rest = sorted((artifact for artifact in found if artifact.path not in wish.keep), key=lambda each: each.used)
    gone = [each for each in rest if each.source is None or (wish.age is not None and each.age >= wish.age)]
    left = sum(each.size for each in found) - sum(each.size for each in gone)
    for artifact in rest:
        if wish.size is not None and left > wish.size and artifact not in gone:
            gone.append(artifact)
            left -= artifact.size
    return gone


def remove(cache: Cache, artifact: CachedArtifact) -> bool:
    """Remove an artifact, unless a process holds it or works on it; says whether it is gone."""
    with ExitStack() as locked:
        are_free = [_is_free(cache.root / ".locks" / f"{name}.lock", locked) for name in _locks(artifact)]
        if not all(are_free) or is_held(artifact.path):
            return False
        # Renamed first: a half removed artifact must not bear the name of a whole one.
        gone = artifact.path
        if not _LEFTOVER.search(gone.name):
            gone = cache.root / f"{artifact.path.name}.incomplete-00000000"
            with disk_faults(gone):
                artifact.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return not gone.exists()


def _is_free(lock: Path, locked: ExitStack) -> bool:
    """Whether nobody else has a lock, which `locked` has then."""
    with disk_faults(lock):
        lock.parent.mkdir(exist_ok=True)
        try:
            locked.enter_context(FileLock(lock).acquire(timeout=0))
        except Timeout:
            return False
    return True


def _directories(root: Path) -> Iterator[Path]:
    if root.is_dir():
        with disk_faults(root):
            yield from sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())


def _artifact(path: Path) -> CachedArtifact:
    contents = None if _LEFTOVER.search(path.name) else manifest.read(path)
    files = [each for each in (path / FILES).rglob("*") if each.is_file()]
    marked = path / MARKER
    return CachedArtifact(
        path=path,
        source=contents.source if contents else None,
        size=sum(each.stat().st_size for each in files),
        files=len(files),
        used=(marked if marked.exists() else path).stat().st_mtime,
    )


def _locks(artifact: CachedArtifact) -> Collection[str]:
    """The names of the locks that whoever makes this artifact holds."""
    name = _LEFTOVER.sub("", artifact.path.name)
    return {name} if artifact.source is None else {name, name_of(artifact.source.partition("#")[0])}
