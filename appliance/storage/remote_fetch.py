"""The walk of a remote URI: list, select, and, unless the cache has them, transfer and verify."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog

from appliance.config.storage import GlobalStorageConfig, StorageConfig, TransferConfig
from appliance.core.errors import StorageTimeoutError, StorageUnavailableError
from appliance.core.uri import redact
from appliance.storage.artifact_download import ArtifactDownload
from appliance.storage.artifact_spec import ArtifactSpec
from appliance.storage.cache import Cache, Report
from appliance.storage.download import with_progress, with_retries
from appliance.storage.filesystems.base import Store
from appliance.storage.lockfile import foresee
from appliance.storage.resolution_cache import last_known_path
from appliance.storage.selection import select

log = structlog.get_logger()

# A connection that does not close must not keep what is done from being done.
_CLOSE_SECONDS = 5.0

# How often a silent store is asked again where there is something to serve without its answer.
_FEWER_RETRIES = 2


def fetch(store: Store, storage: StorageConfig, settings: GlobalStorageConfig, report: Report) -> Path:
    """The directory, or single file, with the selected files of a store, fetched once for each state of them.

    A store that does not answer leaves what it gave the last time. All is done in one event loop of the calling
    thread, which must not have one already.

    Raises:
        StorageError: they cannot be brought.
    """
    cache, uri = Cache.at(settings.cache_dir), redact(storage.uri)
    before = last_known_path(storage, cache)
    if before and store.is_fixed:
        return before
    with in_loop(store) as runner:
        try:
            limits = _less_patient(settings.transfer) if before else settings.transfer
            listing = runner.run(with_progress(with_retries(store.list, uri, limits), partial(report, 0, None)))
        except (StorageUnavailableError, StorageTimeoutError) as error:
            if before is None:
                raise
            log.warning("artifact.unconfirmed", uri=uri, path=str(before), reason=str(error))
            return before
        wanted = ArtifactSpec(listing, select(listing, storage), storage)
        if wanted.archive is None:
            foresee(storage, settings, wanted.listed)
        filling = ArtifactDownload(wanted, store, cache, settings.transfer, report, runner)
        return wanted.within(cache.resume(wanted.key, filling.fill, report))


def _less_patient(limits: TransferConfig) -> TransferConfig:
    return limits.model_copy(update={"retries": min(_FEWER_RETRIES, limits.retries)})


@contextmanager
def in_loop(store: Store) -> Iterator[asyncio.Runner]:
    """An event loop for the store, which is closed with it."""
    with asyncio.Runner() as runner:
        try:
            yield runner
        finally:
            runner.run(_close(store))


async def _close(store: Store) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await store.close()
    except TimeoutError:
        log.warning("store.unclosed", seconds=_CLOSE_SECONDS)
