"""An archive that was fetched becomes the files in it, by the same rules as the files of a place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from appliance.config.storage import StorageConfig
from appliance.storage.archives import extract, top
from appliance.storage.disk_errors import disk_faults
from appliance.storage.filesystems.base import Listing, RemoteFile
from appliance.storage.selection import select


def unpack(archive: Path, place: str, target: Path, storage: StorageConfig, tick: Callable[[], None]) -> None:
    """Fill `target` with the files of an archive that are wanted, and remove the archive and its directory.

    Raises:
        StorageError: it is no archive, a bomb, or holds nothing that may be loaded.
    """
    with disk_faults(target):
        # What an earlier try left, which was killed.
        shutil.rmtree(target)
        target.mkdir()
    extract(archive, "", target, tick)
    root = top(target)
    with disk_faults(target):
        found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        listing = Listing(place, tuple(RemoteFile(name, path.stat().st_size) for name, path in sorted(found.items())))
    wanted = {file.name for file in select(listing, storage)}
    with disk_faults(target):
        for name, path in found.items():
            if name not in wanted:
                path.unlink()
        shutil.rmtree(archive.parent)
