"""Files of all artifacts by content: hard links through which models and revisions share equal files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog

from appliance.core.disk import OnProgress, sha256_of
from appliance.core.errors import StorageError

log = structlog.get_logger()

# Sharing a smaller file saves less than the link costs.
_MIN_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Blobs:
    """A directory of files named by their SHA-256, each a hard link to a file of an artifact.

    It only saves space: where hard links are impossible, files are not shared.
    A shared file is never written to, only replaced.
    """

    root: Path

    def link(self, sha256: str, size: int, target: Path, on_progress: OnProgress) -> bool:
        """Link the file of this digest to `target` if there is a sound one; every byte of it is read first."""
        blob = self.root / sha256
        try:
            if size < _MIN_BYTES or blob.stat().st_size != size or not _is_sound(blob, on_progress):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(blob, target)
        except (OSError, StorageError):
            return False
        return True

    def share(self, files: Path, digests: Mapping[str, str], on_progress: OnProgress) -> None:
        """Add the files of an artifact that is not visible yet, or replace them by equal files that are here."""
        with suppress(OSError):
            for name, sha256 in digests.items():
                path, blob = files / name, self.root / sha256
                size = path.stat().st_size
                if size < _MIN_BYTES or (blob.exists() and blob.samefile(path)):
                    continue
                if not self.link(sha256, size, path, on_progress):
                    self.root.mkdir(exist_ok=True)
                    _link(path, blob)

    def remove_unused(self) -> None:
        """Remove the files that no artifact shares any more."""
        for blob in self.root.glob("*"):
            with suppress(OSError):
                if blob.stat().st_nlink == 1:
                    blob.unlink()


def _is_sound(blob: Path, on_progress: OnProgress) -> bool:
    """Return whether a file has the digest of its name; one that has not is removed."""
    if sha256_of(blob, on_progress) == blob.name:
        return True
    log.warning("artifact.damaged", blob=blob.name)
    blob.unlink()
    return False


def _link(source: Path, target: Path) -> None:
    """Replace `target` by a hard link to `source`."""
    temporary = target.with_name(f".{target.name[:100]}.{uuid4().hex[:8]}")
    os.link(source, temporary)
    try:
        temporary.replace(target)
    finally:
        # Renaming a link over another link to the same file does nothing, and leaves both (POSIX rename).
        temporary.unlink(missing_ok=True)
