"""
The walk of a remote URI: list, select, and, unless the cache has them, transfer and verify.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from appliance.errors import StorageTimeoutError
from appliance.storage.cache import Cache, Report
from appliance.storage.section import StorageSection, StorageSettings
from appliance.storage.selection import select
from appliance.storage.store import Listing, RemoteFile, Store
from appliance.storage.transfer import Transfer, attended, insist
from appliance.storage.uri import redact

log = structlog.get_logger()

# A connection that does not close must not keep what is done from being done.
_CLOSE_SECONDS = 5.0


def fetch(store: Store, storage: StorageSection, settings: StorageSettings, report: Report) -> Path:
    """
    The directory, or single file, with the selected files of a store, fetched once for each state of them.

    Raises:
        StorageError: they cannot be brought.
    """
    with asyncio.Runner() as runner:
        try:
            visit = _Visit(store, storage, settings, report, runner)
            return visit.bring()
        finally:
            runner.run(_close(store))


@dataclass(frozen=True, slots=True)
class _Visit:
    """
    One use of a store, in one event loop of the calling thread.
    """

    store: Store
    storage: StorageSection
    settings: StorageSettings
    report: Report
    runner: asyncio.Runner

    def bring(self) -> Path:
        listing = self._list()
        files = select(listing, self.storage)
        cache = Cache.at(self.settings.cache_dir)
        path = cache.resume(key(listing, files), partial(self._transfer, listing, files), self.report)
        return path / files[0].name if listing.is_file else path

    def _list(self) -> Listing:
        question = insist(self.store.list, redact(self.storage.uri), self.settings.transfer)
        return self.runner.run(attended(question, partial(self.report, 0, None)))

    def _transfer(self, listing: Listing, files: Sequence[RemoteFile], target: Path) -> Mapping[str, str]:
        limits, begun = self.settings.transfer, time.monotonic()
        transfer = Transfer(self.store, listing.place, files, target, limits)

        async def bounded() -> Mapping[str, str]:
            try:
                async with asyncio.timeout(limits.timeout_seconds):
                    return await transfer.run()
            except TimeoutError as error:
                raise StorageTimeoutError(
                    f"{listing.place}: not fetched within {limits.timeout_seconds:g} seconds; what came is kept: "
                    "start again to go on, or raise storage.transfer.timeout_seconds"
                ) from error

        digests = self.runner.run(attended(bounded(), lambda: self.report(transfer.done, transfer.total)))
        seconds = round(time.monotonic() - begun, 3)
        log.info("artifact.fetched", uri=listing.place, bytes=transfer.total, fetched=transfer.fetched, seconds=seconds)
        return digests


def key(listing: Listing, files: Sequence[RemoteFile]) -> str:
    """
    What tells these files in this state from all others.
    """
    state = [[file.name, file.size, file.version, sorted(file.digests.items())] for file in files]
    return f"{listing.place}#{hashlib.sha256(json.dumps(state).encode()).hexdigest()}"


async def _close(store: Store) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await store.close()
    except TimeoutError:
        log.warning("store.unclosed", seconds=_CLOSE_SECONDS)
