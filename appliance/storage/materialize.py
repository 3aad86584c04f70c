"""`materialize`: from the URI of a storage to a verified local path.

The steps: look the storage up in the lock file, open its filesystem, list its files, select, download what the cache
does not have, verify, commit to the cache, and compare with the lock file and the pinned digest.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.disk import OnProgress, ignore_progress
from appliance.core.errors import (
    ArtifactChangedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from appliance.storage.artifact import ArtifactDownload, ArtifactSpec
from appliance.storage.cache import invalidate
from appliance.storage.download import with_progress, with_retries
from appliance.storage.filesystems.base import Store, event_loop_for
from appliance.storage.filesystems.registry import LocalFilesystem, RemoteFilesystem, filesystem_for
from appliance.storage.manifest import FileList, list_files, verify
from appliance.storage.resolution import ResolvedStorage, resolve
from appliance.storage.selection import log_left_out

log = structlog.get_logger()

# Limits for a store that is not available while its last known artifact could be used: of retries, and of the delay
# that it asks for.
_RETRIES_WITH_FALLBACK = 2
_DELAY_WITH_FALLBACK_SECONDS = 10.0


def materialize(
    storage: StorageConfig, settings: GlobalStorageConfig, on_progress: OnProgress = ignore_progress
) -> Path:
    """Return the local directory or file with the verified bytes of a storage; blocks until they are there.

    Raises:
        ArtifactChangedError: the bytes differ from the lock file or the pinned digest.
        StorageError: the bytes cannot be fetched.
    """
    return _materialize(resolve(storage, settings), on_progress)


def verify_storage(
    storage: StorageConfig, settings: GlobalStorageConfig, on_progress: OnProgress, *, read_all: bool = False
) -> FileList:
    """Read every byte of a storage in the cache again, fetch what is damaged anew, and return its files.

    Files outside the cache are read for the lock file, and with `read_all`.

    Raises:
        StorageError: the bytes cannot be fetched, change again, or differ from the lock file.
    """
    resolved = resolve(storage, settings)
    path = resolved.cached_path() or _materialize(resolved, on_progress)
    try:
        verify(path, on_progress)
    except ArtifactCorruptError as error:
        log.warning("artifact.invalidated", reason=str(error))
        invalidate(path)
        path = _materialize(resolved, on_progress)
        verify(path, on_progress)
    files = list_files(path, on_progress, read_all=read_all or resolved.lock_entry is not None)
    if resolved.lock_entry:
        resolved.lock_entry.check(files)
    return files


def fetch(store: Store, resolved: ResolvedStorage, on_progress: OnProgress) -> Path:
    """Return the path with the selected files of a store, downloaded once for each state of them.

    If the store is not available, the last known artifact is used. Everything runs in one event loop of the calling
    thread, which must not have one already.
    """
    fallback = resolved.last_known_path()
    if fallback and store.is_fixed:
        return fallback
    config = resolved.settings.transfer
    listing_config = config
    if fallback:
        limits = {
            "retries": min(_RETRIES_WITH_FALLBACK, config.retries),
            "timeout_seconds": min(_DELAY_WITH_FALLBACK_SECONDS, config.timeout_seconds),
        }
        listing_config = config.model_copy(update=limits)
    with event_loop_for(store) as runner:
        try:
            listing = runner.run(with_progress(with_retries(store.list, resolved.uri, listing_config), on_progress))
        except (StorageUnavailableError, StorageTimeoutError) as error:
            if fallback is None:
                raise
            log.warning("artifact.unconfirmed", uri=resolved.uri, path=str(fallback), reason=str(error))
            return fallback
        spec = ArtifactSpec.of(listing, resolved.pinned)
        log_left_out(listing.uri, spec.left_out)
        if resolved.lock_entry and not spec.is_packed:
            # Nothing is downloaded only to be rejected.
            resolved.lock_entry.check(spec.file_list)
        return ArtifactDownload(spec, store, resolved.cache, config, on_progress, runner).run()


def _materialize(resolved: ResolvedStorage, on_progress: OnProgress) -> Path:
    path = _find_or_fetch(resolved, on_progress)
    _check(path, resolved, on_progress)
    return path


def _find_or_fetch(resolved: ResolvedStorage, on_progress: OnProgress) -> Path:
    settings, uri = resolved.settings, resolved.pinned.uri
    filesystem = filesystem_for(uri)
    if isinstance(filesystem, LocalFilesystem):
        return filesystem.find(resolved.pinned, settings)
    if settings.offline:
        path = resolved.cached_path()
        if path is None:
            raise ArtifactNotFoundError(
                f"{resolved.uri}: not in the cache {resolved.cache.root}, and storage.offline allows no connection; "
                "fetch it with: appliance pull FILE"
            )
        return path
    if isinstance(filesystem, RemoteFilesystem):
        path = fetch(filesystem.open(resolved.pinned, settings), resolved, on_progress)
    else:
        path = filesystem.fetch(resolved.pinned, settings, on_progress)
    resolved.remember(path)
    return path


def _check(path: Path, resolved: ResolvedStorage, on_progress: OnProgress) -> None:
    """Compare the bytes with the lock file and the pinned digest.

    Files that are used in place are compared with the lock file by size, to start at once; a pinned digest is worth
    reading them.
    """
    if resolved.lock_entry:
        resolved.lock_entry.check(list_files(path, on_progress, read_all=False))
    expected = resolved.configured.digest
    if expected is None:
        return
    found = list_files(path, on_progress, read_all=True).digest
    if found != expected.removeprefix("sha256:"):
        raise ArtifactChangedError(
            f"{resolved.uri}: has the digest sha256:{found}, and storage.digest is {expected}; "
            "check who changed it, or pin the new one"
        )
