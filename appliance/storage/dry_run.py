"""`pull --explain`: what would be fetched, from where and with which credential, without fetching it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.uri import redact
from appliance.storage.artifact import ArtifactSpec
from appliance.storage.download import with_retries
from appliance.storage.filesystems.base import Store
from appliance.storage.filesystems.registry import LocalFilesystem, RemoteFilesystem, filesystem_for
from appliance.storage.manifest import list_files
from appliance.storage.resolution import ResolvedStorage, resolve


@dataclass(frozen=True, slots=True)
class DryRun:
    """One storage; `files` and `size` are None if they are not known, `path` if it is not on this machine.

    `source` is the canonical URI or the local path. `left_out` has the reason for each file that is not fetched.
    """

    uri: str
    source: str
    credential: str
    revision: str | None
    files: int | None
    size: int | None
    path: Path | None
    left_out: Mapping[str, str] = field(default_factory=dict)


def explain(storage: StorageConfig, settings: GlobalStorageConfig) -> DryRun:
    """Describe what `materialize` would do; the store is asked unless the settings allow no connection."""
    resolved = resolve(storage, settings)
    uri = resolved.pinned.uri
    filesystem = filesystem_for(uri)
    if isinstance(filesystem, LocalFilesystem):
        return _explain_local(resolved, filesystem.find(resolved.pinned, settings), "none: the files are local")
    if settings.offline:
        return _explain_local(resolved, resolved.cached_path(), "none: offline")
    if isinstance(filesystem, RemoteFilesystem):
        return asyncio.run(_explain_remote(resolved, filesystem.open(resolved.pinned, settings)))
    return _explain_local(resolved, resolved.cached_path(), "the configuration of pip")


def _explain_local(resolved: ResolvedStorage, path: Path | None, credential: str) -> DryRun:
    found = list_files(path, read_all=False) if path else None
    return DryRun(
        uri=resolved.uri,
        source=(found and found.source) or str(path or redact(resolved.pinned.uri)),
        credential=credential,
        revision=None,
        files=len(found.files) if found else None,
        size=sum(info.size for info in found.files.values()) if found else None,
        path=path,
    )


async def _explain_remote(resolved: ResolvedStorage, store: Store) -> DryRun:
    try:
        listing = await with_retries(store.list, resolved.uri, resolved.settings.transfer)
        spec = ArtifactSpec.of(listing, resolved.configured)
        return DryRun(
            uri=resolved.uri,
            source=listing.uri,
            credential=store.credential,
            revision=listing.revision,
            files=len(spec.files),
            size=sum(file.size for file in spec.files),
            path=spec.find(resolved.cache),
            left_out=spec.left_out,
        )
    finally:
        await store.close()
