"""One artifact: the selected files of a listing, and their download into the cache."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from appliance.config.storage import StorageConfig, TransferConfig
from appliance.core.disk import OnProgress, translate_disk_errors
from appliance.core.errors import ArtifactNotFoundError, NoSpaceError, StorageTimeoutError
from appliance.storage import manifest
from appliance.storage.archives import extract, extract_layer, is_archive, root_of
from appliance.storage.cache import Cache
from appliance.storage.download import JOURNAL, Downloader, FileDigests, Journal, version_id, with_progress
from appliance.storage.filesystems.base import Listing, RemoteFile, Store
from appliance.storage.lockfile import options_digest
from appliance.storage.manifest import FILES, FileInfo, FileList
from appliance.storage.selection import log_left_out, select

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """The files of a listing that a storage selects; `left_out` has the reason for each of the others."""

    listing: Listing
    storage: StorageConfig
    files: Sequence[RemoteFile]
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, listing: Listing, storage: StorageConfig) -> ArtifactSpec:
        """Return the files to fetch; raises as `select` does."""
        selection = select(listing, storage)
        return cls(listing, storage, selection.files, selection.left_out)

    @property
    def is_packed(self) -> bool:
        """Whether files are unpacked: layers of an image, or the single file of the listing if it is an archive."""
        is_single_archive = self.listing.is_file and is_archive(self.files[0].name)
        return is_single_archive or any(file.unpack is not None for file in self.files)

    @property
    def key(self) -> str:
        """The key of the artifact in the cache; for archives it includes the rules that select their members."""
        rules = self.storage.model_dump_json(include={"include", "exclude", "allow_pickle"}) if self.is_packed else ""
        options = filter(None, [options_digest(self.storage)])
        state = ([file.name, file.size, file.version, sorted(file.digests.items())] for file in self.files)
        return f"{self.listing.uri}#{hashlib.sha256(json.dumps([rules, *options, *state]).encode()).hexdigest()}"

    @property
    def unverifiable(self) -> Sequence[str]:
        """The names of files whose store lists no digest; nothing but their sizes can be checked."""
        return [file.name for file in self.files if file.size and FileDigests(file).algorithm is None]

    @property
    def file_list(self) -> FileList:
        """The files as the store lists them."""
        files = {file.name: FileInfo(file.size, file.digests.get("sha256")) for file in self.files}
        return FileList(self.listing.uri, files, self.listing.is_file)

    def path_in(self, files: Path) -> Path:
        """Return the path that the URI means in the directory with the artifact's files."""
        if self.is_packed:
            return root_of(files)
        return files / self.files[0].name if self.listing.is_file else files

    def find(self, cache: Cache) -> Path | None:
        """Return its path in the cache, or None if it is not there."""
        files = cache.find(self.key)
        return self.path_in(files) if files else None


@dataclass(frozen=True, slots=True)
class ArtifactDownload:
    """The download of one artifact into the cache; what arrived before an error is kept for the next attempt."""

    spec: ArtifactSpec
    store: Store
    cache: Cache
    config: TransferConfig
    on_progress: OnProgress
    runner: asyncio.Runner

    def run(self) -> Path:
        """Return the path of the artifact in the cache, downloaded if it is not there."""
        key = self.spec.key
        files = self.cache.find(key)
        if files is None:
            with self.cache.lock_unfinished(key, self.on_progress):
                # Another process may have finished it during the wait for the lock.
                files = self.cache.find(key)
                if files is None:
                    work = self.cache.open_unfinished(key)
                    digests, by_size = self._download(work), self.spec.unverifiable
                    files = self.cache.commit(work, key, digests, self.on_progress, verified_by_size_only=by_size)
        return self.spec.path_in(files)

    def _download(self, work: Path) -> Mapping[str, str]:
        """Download all files, and return the SHA-256 of those that are hashed, by name."""
        if not self.spec.is_packed:
            return self._fetch(self.spec.files, work / FILES)
        packed = work / "packed"
        with translate_disk_errors(packed):
            packed.mkdir(exist_ok=True)
        self._fetch(self.spec.files, packed)
        self._unpack(packed, work / FILES)
        return {}

    def _fetch(self, files: Sequence[RemoteFile], target: Path) -> Mapping[str, str]:
        start = time.monotonic()
        linked = self._link_cached(files, target)
        linked_size = sum(file.size for file in files if file.name in linked)
        rest = [file for file in files if file.name not in linked]
        downloader = Downloader(self.store, self.spec.listing.uri, rest, target, self.config, keep=linked)
        digests = self.runner.run(
            with_progress(
                self._with_timeout(downloader),
                self.on_progress,
                lambda: (linked_size + downloader.done, linked_size + downloader.total),
            )
        )
        log.info(
            "artifact.fetched",
            uri=self.spec.listing.uri,
            bytes=linked_size + downloader.total,
            fetched=downloader.fetched,
            files=len(files),
            verified=downloader.verified + len(linked),
            seconds=round(time.monotonic() - start, 3),
        )
        if unverifiable := self.spec.unverifiable:
            log.warning(
                "artifact.unverified",
                uri=self.spec.listing.uri,
                files=len(unverifiable),
                reason="verified by size only, as the store lists no digests; pin them with: appliance lock FILE",
            )
        return {**digests, **linked}

    def _link_cached(self, files: Sequence[RemoteFile], target: Path) -> Mapping[str, str]:
        """Link files that another artifact has, and return the SHA-256 of each by name."""
        listed = {file.name: file.digests["sha256"] for file in files if "sha256" in file.digests}
        known = {**_digests_of_earlier_versions(self.cache, self.spec.listing.uri, files), **listed}
        sizes = {file.name: file.size for file in files}
        return {
            name: sha256
            for name, sha256 in known.items()
            if self.cache.blobs.link(sha256, sizes[name], target / name, self.on_progress)
        }

    async def _with_timeout(self, downloader: Downloader) -> Mapping[str, str]:
        uri, seconds = self.spec.listing.uri, self.config.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await downloader.run()
        except TimeoutError as error:
            raise StorageTimeoutError(
                f"{uri}: not fetched within {seconds:g} seconds; what arrived is kept: "
                "start again to continue, or raise storage.transfer.timeout_seconds"
            ) from error
        except NoSpaceError as error:
            # The disk error has the directory and not the model.
            raise NoSpaceError(f"{uri}: {error}") from error

    def _unpack(self, packed: Path, target: Path) -> None:
        """Replace the contents of `target` by the selected files of all archives, and remove the archives."""
        uri = self.spec.listing.uri
        with translate_disk_errors(target):
            # An interrupted attempt may have left files.
            shutil.rmtree(target)
            target.mkdir()
        for file in self.spec.files:
            self._unpack_file(file, packed, target)
        root = root_of(target)
        with translate_disk_errors(target):
            found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
            members = tuple(RemoteFile(name, path.stat().st_size) for name, path in sorted(found.items()))
        if directory := not members and next((file.unpack for file in self.spec.files if file.unpack), None):
            raise ArtifactNotFoundError(f"{uri}: the image has no files below /{directory}; check which image it is")
        listing = Listing(uri, members)
        left_out = select(listing, self.spec.storage).left_out
        log_left_out(uri, left_out)
        with translate_disk_errors(target):
            for name in left_out:
                found[name].unlink()
            shutil.rmtree(packed)

    def _unpack_file(self, file: RemoteFile, packed: Path, target: Path) -> None:
        """Put a downloaded file below `target`: its contents if it is an archive, else a link to it."""
        size = sum(file.size for file in self.spec.files)

        def report_complete(_done: int, _total: int | None) -> None:
            self.on_progress(size, size)

        if file.unpack is not None:
            extract_layer(packed / file.name, file.unpack, target, report_complete)
        elif self.spec.listing.is_file:
            extract(packed / file.name, "", target, report_complete)
        else:
            with translate_disk_errors(target / file.name):
                (target / file.name).parent.mkdir(parents=True, exist_ok=True)
                # Copied, if it must be, because the next attempt may need the packed one.
                try:
                    (target / file.name).hardlink_to(packed / file.name)
                except OSError:
                    shutil.copyfile(packed / file.name, target / file.name)


def _digests_of_earlier_versions(cache: Cache, uri: str, files: Sequence[RemoteFile]) -> Mapping[str, str]:
    """Return the SHA-256, by name, of files that an earlier artifact of the same URI has in the same version.

    Most stores do not list SHA-256, so this is what finds an unchanged file in the cache.
    """
    by_version = {version: file for file in files if (version := version_id(file))}
    found: dict[str, str] = {}
    for artifact in cache.artifacts_of(uri):
        contents = manifest.read(artifact)
        if contents is None or (contents.source or "").partition("#")[0] != uri:
            continue
        for version in Journal(artifact / JOURNAL).completed().keys() & by_version.keys():
            file = by_version[version]
            info = contents.files.get(file.name)
            if info and info.sha256 and info.size == file.size:
                found[file.name] = info.sha256
    return found
