"""The files that a materialized path holds, each with its size and digest, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.storage.disk_errors import disk_faults
from appliance.storage.manifest import FILES, artifact_of

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file: its size in bytes, and its SHA-256 in hex, None where nobody has read it yet."""

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class FileList:
    """Files by their names relative to the materialized path; one file alone has its own name.

    `place` is the canonical URI they were fetched from, with a revision that cannot move; None for what was used in
    place.
    """

    place: str | None
    files: Mapping[str, FileInfo]
    is_file: bool

    @property
    def digest(self) -> str | None:
        """
        The SHA-256 of one file alone; of a directory, one over all names, sizes and digests; None where one is unread.
        """
        listing = [[name, held.size, held.sha256] for name, held in sorted(self.files.items())]
        if any(sha256 is None for _, _, sha256 in listing):
            return None
        if self.is_file:
            return next(held.sha256 for held in self.files.values())
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def contents(path: Path, tick: Callable[[], None] = lambda: None, *, deep: bool) -> FileList:
    """What lies at `path`: of the cache by its manifest, else by a look at each file.

    `deep` reads files outside the cache for their digests, and calls `tick` for every megabyte.
    """
    artifact, manifest = artifact_of(path) or (path, None)
    if manifest is None:
        return FileList(None, _look(path, tick, deep), path.is_file())
    inside = path.relative_to(artifact / FILES).as_posix()
    below = {
        _under(inside, name): FileInfo(entry.size, entry.sha256)
        for name, entry in manifest.files.items()
        if inside == "." or f"{name}/".startswith(f"{inside}/")
    }
    return FileList(manifest.source.partition("#")[0], below, path.is_file())


def _under(inside: str, name: str) -> str:
    """A name relative to the path `inside`, or the last part of it where it is that path."""
    return name.rpartition("/")[2] if name == inside else name.removeprefix(f"{inside}/")


def _look(path: Path, tick: Callable[[], None], deep: bool) -> Mapping[str, FileInfo]:
    with disk_faults(path):
        found = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        sizes = {each: each.stat().st_size for each in found}
    return {
        (each.name if each == path else each.relative_to(path).as_posix()): FileInfo(
            size, _sha256(each, tick) if deep else None
        )
        for each, size in sizes.items()
    }


def _sha256(path: Path, tick: Callable[[], None]) -> str:
    state = hashlib.sha256()
    with disk_faults(path):
        file = path.open("rb", buffering=0)
    with file:
        while True:
            with disk_faults(path):
                block = file.read(_BLOCK)
            if not block:
                return state.hexdigest()
            state.update(block)
            tick()
