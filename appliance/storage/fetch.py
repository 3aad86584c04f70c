"""
The walk of a remote URI: list, select, and, unless the cache has them, transfer and verify.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from appliance.storage.cache import Cache, Report
from appliance.storage.faults import check_room, disk_faults
from appliance.storage.section import StorageSection, StorageSettings
from appliance.storage.selection import select
from appliance.storage.store import Listing, RemoteFile, Store


def fetch(store: Store, storage: StorageSection, settings: StorageSettings, report: Report) -> Path:
    """
    The directory, or single file, with the selected files of a store, fetched once for each state of them.

    Raises:
        StorageError: they cannot be brought.
    """
    with asyncio.Runner() as runner:
        try:
            listing = runner.run(store.list())
            files = select(listing, storage)

            def fill(target: Path) -> None:
                check_room(sum(file.size for file in files), target)
                runner.run(_transfer(store, files, target))

            path = Cache.at(settings.cache_dir).build(key(listing, files), fill, report)
            return path / files[0].name if listing.is_file else path
        finally:
            runner.run(store.close())


def key(listing: Listing, files: Sequence[RemoteFile]) -> str:
    """
    What tells these files in this state from all others.
    """
    state = [[file.name, file.size, file.version, sorted(file.digests.items())] for file in files]
    return f"{listing.place}#{hashlib.sha256(json.dumps(state).encode()).hexdigest()}"


async def _transfer(store: Store, files: Sequence[RemoteFile], target: Path) -> None:
    for file in files:
        path = target / file.name
        with disk_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        async for block in store.read(file, 0, file.size):
            with disk_faults(path), path.open("ab") as out:
                out.write(block)
