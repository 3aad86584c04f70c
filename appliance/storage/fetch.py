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

from appliance.errors import StorageTimeoutError, StorageUnavailableError
from appliance.storage.archives import is_archive, top
from appliance.storage.blobs import Blobs
from appliance.storage.cache import Cache, Report
from appliance.storage.faults import disk_faults
from appliance.storage.past import brought
from appliance.storage.section import StorageSection, StorageSettings
from appliance.storage.selection import select
from appliance.storage.siblings import known_digests
from appliance.storage.store import Listing, RemoteFile, Store
from appliance.storage.transfer import Transfer, attended, insist
from appliance.storage.unpacking import unpack
from appliance.storage.uri import redact

log = structlog.get_logger()

# A connection that does not close must not keep what is done from being done.
_CLOSE_SECONDS = 5.0

# How often a silent store is asked again where there is something to serve without its answer.
_FEWER_RETRIES = 2


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
        cache = Cache.at(self.settings.cache_dir)
        before = brought(self.storage, cache)
        if before and self.store.is_fixed:
            return before
        try:
            listing = self._list(_FEWER_RETRIES if before else None)
        except (StorageUnavailableError, StorageTimeoutError) as error:
            if before is None:
                raise
            log.warning("artifact.unconfirmed", uri=redact(self.storage.uri), path=str(before), reason=str(error))
            return before
        files = select(listing, self.storage)
        is_packed = _is_packed(listing, files)
        fill = partial(self._unpack, listing, files[0]) if is_packed else partial(self._transfer, listing, files)
        return _begin(listing, files, cache.resume(key(listing, files, self.storage), fill, self.report))

    def _list(self, retries: int | None) -> Listing:
        limits = self.settings.transfer
        if retries is not None:
            limits = limits.model_copy(update={"retries": min(retries, limits.retries)})
        question = insist(self.store.list, redact(self.storage.uri), limits)
        return self.runner.run(attended(question, partial(self.report, 0, None)))

    def _transfer(self, listing: Listing, files: Sequence[RemoteFile], target: Path) -> Mapping[str, str]:
        limits, begun = self.settings.transfer, time.monotonic()
        shared = self._take(listing, files, target)
        size = sum(file.size for file in files if file.name in shared)
        rest = [file for file in files if file.name not in shared]
        transfer = Transfer(self.store, listing.place, rest, target, limits, others=shared)

        async def bounded() -> Mapping[str, str]:
            try:
                async with asyncio.timeout(limits.timeout_seconds):
                    return await transfer.run()
            except TimeoutError as error:
                raise StorageTimeoutError(
                    f"{listing.place}: not fetched within {limits.timeout_seconds:g} seconds; what came is kept: "
                    "start again to go on, or raise storage.transfer.timeout_seconds"
                ) from error

        digests = self.runner.run(attended(bounded(), lambda: self.report(size + transfer.done, size + transfer.total)))
        seconds = round(time.monotonic() - begun, 3)
        log.info(
            "artifact.fetched",
            uri=listing.place,
            bytes=size + transfer.total,
            fetched=transfer.fetched,
            seconds=seconds,
        )
        return {**digests, **shared}

    def _take(self, listing: Listing, files: Sequence[RemoteFile], target: Path) -> Mapping[str, str]:
        """
        Put what another artifact has already into its place, and return the SHA-256 of each by its name.
        """
        cache, tick = Cache.at(self.settings.cache_dir), partial(self.report, 0, None)
        blobs = Blobs.of(cache.root)
        listed = {file.name: file.digests["sha256"] for file in files if "sha256" in file.digests}
        known = {**known_digests(cache, listing.place, files), **listed}
        sizes = {file.name: file.size for file in files}
        return {name: sha256 for name, sha256 in known.items() if blobs.take(sha256, sizes[name], target / name, tick)}

    def _unpack(self, listing: Listing, file: RemoteFile, target: Path) -> Mapping[str, str]:
        packed = target.with_name("packed")
        with disk_faults(packed):
            packed.mkdir(exist_ok=True)
        self._transfer(listing, [file], packed)
        unpack(packed / file.name, listing.place, target, self.storage, partial(self.report, file.size, file.size))
        return {}


def find(listing: Listing, files: Sequence[RemoteFile], storage: StorageSection, cache: Cache) -> Path | None:
    """
    Where these files lie already, or None.
    """
    path = cache.find(key(listing, files, storage))
    return _begin(listing, files, path) if path else None


def key(listing: Listing, files: Sequence[RemoteFile], storage: StorageSection) -> str:
    """
    What tells these files in this state from all others; of an archive, what is taken out of it belongs to that.
    """
    rules = storage.model_dump_json(include={"include", "exclude", "allow_pickle"})
    state = [
        rules if _is_packed(listing, files) else "",
        *([file.name, file.size, file.version, sorted(file.digests.items())] for file in files),
    ]
    return f"{listing.place}#{hashlib.sha256(json.dumps(state).encode()).hexdigest()}"


def _is_packed(listing: Listing, files: Sequence[RemoteFile]) -> bool:
    return listing.is_file and is_archive(files[0].name)


def _begin(listing: Listing, files: Sequence[RemoteFile], path: Path) -> Path:
    """
    What a model's path is in the directory of an artifact.
    """
    if _is_packed(listing, files):
        return top(path)
    return path / files[0].name if listing.is_file else path


async def _close(store: Store) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await store.close()
    except TimeoutError:
        log.warning("store.unclosed", seconds=_CLOSE_SECONDS)
