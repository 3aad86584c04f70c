"""How an artifact comes to be: made aside, sealed, and put in its place by one rename."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

import structlog

from appliance.storage import manifest
from appliance.storage.blobs import Blobs
from appliance.storage.disk_errors import disk_faults
from appliance.storage.manifest import FILES

log = structlog.get_logger()

Report = Callable[[int, int | None], None]
"""
Hears how far the work is: bytes done, and bytes in all or None when unknown.

It is called every second or so, also while nothing moves, and may raise to stop the work: then everything that cannot
be continued is cleaned up, and the exception passes through.
"""

UNFINISHED = ".unfinished"
"""
Directory of a cache with the artifacts that a killed or failed fetch left, to be continued.
"""

# What nobody came back for in this time is most likely not wanted any more.
_KEPT_SECONDS = 7 * 24 * 3600


def is_whole(place: Path) -> bool:
    """Whether an artifact lies there, complete as far as names and sizes tell."""
    with disk_faults(place):
        contents = manifest.read(place)
    return contents is not None and not contents.damage(place / FILES)


def invalidate(path: Path) -> None:
    """Make the artifact that `path` lies in unfinished again: the next time, what is damaged of it is made anew."""
    if found := manifest.artifact_of(path):
        with disk_faults(found[0]):
            (found[0] / manifest.MARKER).unlink(missing_ok=True)


def build(place: Path, source: str, make: Callable[[Path], None], report: Report) -> None:
    """Make an artifact from nothing; when that fails, nothing is left."""
    _clear(place)
    work = _aside(place)
    try:
        with disk_faults(work):
            (work / FILES).mkdir(parents=True)
        make(work / FILES)
        _finish(work, place, source, {}, report)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def resume(place: Path, work: Path, source: str, make: Callable[[Path], Mapping[str, str]], report: Report) -> None:
    """Make an artifact from what lies in `work` already; when that fails, it lies there still."""
    _drop_stale(work)
    if place.exists() and not work.exists():
        _warn(place)
        with disk_faults(work):
            work.parent.mkdir(exist_ok=True)
            place.rename(work)
    _clear(place)
    with disk_faults(work):
        (work / FILES).mkdir(parents=True, exist_ok=True)
        (work / manifest.MARKER).unlink(missing_ok=True)
        work.touch()
    _finish(work, place, source, make(work / FILES), report)


def _finish(work: Path, place: Path, source: str, known: Mapping[str, str], report: Report) -> None:
    size = manifest.size_of(work / FILES)
    manifest.seal(work, source, known, tick := partial(report, size, size))
    if contents := manifest.read(work):
        digests = {name: entry.sha256 for name, entry in contents.files.items()}
        Blobs.of(place.parent).share(work / FILES, digests, tick)
    with disk_faults(place):
        work.rename(place)
    manifest.sync_directory(place.parent)


def _clear(place: Path) -> None:
    """Remove a damaged artifact, and what a builder that was killed left behind."""
    if place.exists():
        _warn(place)
        # Renamed first: a half removed artifact must not bear the name of a whole one.
        with disk_faults(place):
            place.rename(_aside(place))
    for leftover in place.parent.glob(f"{place.name}.incomplete-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _warn(place: Path) -> None:
    with disk_faults(place):
        contents = manifest.read(place)
    log.warning("artifact.damaged", artifact=place.name, files=contents.damage(place / FILES) if contents else None)


def _aside(place: Path) -> Path:
    # A new name each time: a child of a killed builder may write to the old one for a moment longer.
    return place.with_name(f"{place.name}.incomplete-{uuid4().hex[:8]}")


def _drop_stale(work: Path) -> None:
    """Remove unfinished work that nobody came back for, other than `work`, for which somebody does now."""
    for stale in work.parent.glob("*"):
        with suppress(OSError):
            if stale != work and time.time() - stale.stat().st_mtime > _KEPT_SECONDS:
                log.info("artifact.given_up", artifact=stale.name)
                shutil.rmtree(stale, ignore_errors=True)
