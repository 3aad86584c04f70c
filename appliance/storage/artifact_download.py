"""
Fill the directory of an artifact with what is wanted: from the cache what it has already, the rest from the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from appliance.config.storage import TransferConfig
from appliance.core.errors import NoSpaceError, StorageTimeoutError
from appliance.storage.artifact_spec import ArtifactSpec
from appliance.storage.blobs import Blobs
from appliance.storage.cache import Cache, Report
from appliance.storage.disk_errors import disk_faults
from appliance.storage.download import Downloader, with_progress
from appliance.storage.file_reuse import known_digests
from appliance.storage.filesystems.base import RemoteFile, Store
from appliance.storage.unpack import unpack

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ArtifactDownload:
    """One artifact to be, and where its bytes come from."""

    wanted: ArtifactSpec
    store: Store
    cache: Cache
    limits: TransferConfig
    report: Report
    runner: asyncio.Runner

    def fill(self, target: Path) -> Mapping[str, str]:
        """Bring everything, and return the SHA-256 of the files it is known of, by their names.

        Raises:
            StorageError: something cannot be brought.
        """
        archive = self.wanted.archive
        if archive is None:
            return self._bring(self.wanted.files, target)
        packed = target.with_name("packed")
        with disk_faults(packed):
            packed.mkdir(exist_ok=True)
        self._bring([archive], packed)
        tick = partial(self.report, archive.size, archive.size)
        unpack(packed / archive.name, self._place, target, self.wanted.storage, tick)
        return {}

    @property
    def _place(self) -> str:
        return self.wanted.listing.place

    def _bring(self, files: Sequence[RemoteFile], target: Path) -> Mapping[str, str]:
        begun = time.monotonic()
        shared = self._take(files, target)
        size = sum(file.size for file in files if file.name in shared)
        rest = [file for file in files if file.name not in shared]
        transfer = Downloader(self.store, self._place, rest, target, self.limits, others=shared)
        digests = self.runner.run(
            with_progress(self._bounded(transfer), lambda: self.report(size + transfer.done, size + transfer.total))
        )
        log.info(
            "artifact.fetched",
            uri=self._place,
            bytes=size + transfer.total,
            fetched=transfer.fetched,
            files=len(files),
            verified=transfer.verified + len(shared),
            seconds=round(time.monotonic() - begun, 3),
        )
        return {**digests, **shared}

    def _take(self, files: Sequence[RemoteFile], target: Path) -> Mapping[str, str]:
        """Put what another artifact has already into its place, and return the SHA-256 of each by its name."""
        blobs, tick = Blobs.of(self.cache.root), partial(self.report, 0, None)
        listed = {file.name: file.digests["sha256"] for file in files if "sha256" in file.digests}
        known = {**known_digests(self.cache, self._place, files), **listed}
        sizes = {file.name: file.size for file in files}
        return {name: sha256 for name, sha256 in known.items() if blobs.take(sha256, sizes[name], target / name, tick)}

    async def _bounded(self, transfer: Downloader) -> Mapping[str, str]:
        try:
            async with asyncio.timeout(self.limits.timeout_seconds):
                return await transfer.run()
        except TimeoutError as error:
            raise StorageTimeoutError(
                f"{self._place}: not fetched within {self.limits.timeout_seconds:g} seconds; what came is kept: "
                "start again to go on, or raise storage.transfer.timeout_seconds"
            ) from error
        except NoSpaceError as error:
            # The disk knows the directory and not the model.
            raise NoSpaceError(f"{self._place}: {error}") from error
