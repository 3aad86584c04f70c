"""Files of all artifacts by their contents: hard links, so that models and revisions share what they have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog

log = structlog.get_logger()

# A smaller file is not worth a name more.
_SMALLEST = 64 * 1024

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Blobs:
    """A directory of files named by their SHA-256, each a second name of a file in an artifact.

    All of it is a saving and nothing depends on it: where there are no hard links, files are simply not shared.
    A file that is shared is never written to: it is replaced.
    """

    root: Path

    @classmethod
    def of(cls, cache: Path) -> Blobs:
        """The files of the cache in this directory."""
        return cls(cache / ".blobs")

    def take(self, sha256: str, size: int, target: Path, tick: Callable[[], None]) -> bool:
        """Put the file of this digest at `target`, if there is one; every byte of it is read first."""
        blob = self.root / sha256
        try:
            if size < _SMALLEST or blob.stat().st_size != size or not self._is_sound(blob, tick):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(blob, target)
        except OSError:
            return False
        return True

    def share(self, files: Path, digests: Mapping[str, str], tick: Callable[[], None]) -> None:
        """
        Give the files of an artifact that nobody sees yet, by their names, a name here, or replace them by one that has
        it already.
        """
        with suppress(OSError):
            for name, sha256 in digests.items():
                path, blob = files / name, self.root / sha256
                size = path.stat().st_size
                if size < _SMALLEST or (blob.exists() and blob.samefile(path)):
                    continue
                if not self.take(sha256, size, path, tick):
                    self.root.mkdir(exist_ok=True)
                    _link(path, blob)

    def drop_unused(self) -> int:
        """Remove the names that no artifact shares any more, and return the bytes that this frees."""
        freed = 0
        for blob in self.all():
            with suppress(OSError):
                if (facts := blob.stat()).st_nlink == 1:
                    blob.unlink()
                    freed += facts.st_size
        return freed

    def all(self) -> Iterator[Path]:
        """Every file here."""
        yield from self.root.glob("*")

    def _is_sound(self, blob: Path, tick: Callable[[], None]) -> bool:
        """Whether a file is what its name says; one that is not is taken out of here."""
        state = hashlib.sha256()
        with blob.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                state.update(block)
                tick()
        if state.hexdigest() == blob.name:
            return True
        log.warning("artifact.damaged", blob=blob.name)
        blob.unlink()
        return False


def _link(source: Path, target: Path) -> None:
    """Make `target` another name of a file, in place of whatever has that name."""
    temporary = _beside(target)
    os.link(source, temporary)
    try:
        temporary.replace(target)
    finally:
        # Renaming one name of a file over another of its names does nothing, and leaves both (POSIX rename).
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{uuid4().hex[:8]}")
