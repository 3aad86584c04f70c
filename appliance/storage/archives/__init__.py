"""Take files out of archives that may have been made by an enemy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.core.errors import StorageError
from appliance.storage.archives import tars, zips
from appliance.storage.archives.limits import LIMITS, Limits

Extract = Callable[[Path, str, Path, Callable[[], None], Limits], None]

SUFFIXES: Mapping[str, Extract] = {
    ".zip": zips.extract,
    ".tar": tars.extract,
    ".tar.gz": tars.extract,
    ".tgz": tars.extract,
    ".tar.zst": tars.extract,
    ".tzst": tars.extract,
}
"""
Endings of names, in any case, that make one file an archive to unpack rather than a model itself.
"""

_EXTRACTS = {**SUFFIXES, ".whl": zips.extract}


def is_archive(name: str) -> bool:
    """Whether a store's one file of this name is unpacked; a wheel is not, it has a scheme of its own."""
    return name.lower().endswith(tuple(SUFFIXES))


def extract(
    archive: Path, inside: str, target: Path, tick: Callable[[], None] = lambda: None, limits: Limits = LIMITS
) -> None:
    """Take the file or directory `inside` out of an archive, or all of it for "", keeping its place below `target`.

    One bad name condemns the archive: of a zip, nothing at all is written then, because its directory is read first;
    a tar is read once, and what was written before the bad name is the caller's to throw away.
    `tick` is called for every megabyte and may raise to stop.

    Raises:
        ArtifactNotFoundError: the archive does not have it.
        ArtifactCorruptError: the archive is broken, tries to write elsewhere, or unpacks to more than `limits` allow.
    """
    found = next((work for suffix, work in _EXTRACTS.items() if archive.name.lower().endswith(suffix)), None)
    if found is None:
        raise StorageError(f"{archive.name}: not a known archive; known are {', '.join(SUFFIXES)}")
    found(archive, inside, target, tick, limits)


def top(files: Path) -> Path:
    """Where a model begins in an unpacked archive: the one directory that everything lies in, or `files` itself."""
    inside = list(files.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else files
