"""What would be fetched, from where, as whom, and what is here already; nothing is fetched for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.uri import redact
from appliance.storage.artifact_spec import ArtifactSpec
from appliance.storage.cache import Cache
from appliance.storage.download import with_retries
from appliance.storage.file_list import contents
from appliance.storage.filesystems.base import Listing, Store
from appliance.storage.filesystems.registry import RemoteBackend, backend_for
from appliance.storage.materialize import as_locked, brought, is_in_place
from appliance.storage.selection import sort_out


@dataclass(frozen=True, slots=True)
class DryRun:
    """One storage; `files` and `size` are None where nobody has looked yet, and `path` where it is not on this machine.

    `left_out` says why, by the names of files.
    """

    uri: str
    place: str
    credential: str
    revision: str | None
    files: int | None
    size: int | None
    path: Path | None
    left_out: Mapping[str, str] = field(default_factory=dict)


def explain(storage: StorageConfig, settings: GlobalStorageConfig) -> DryRun:
    """Ask the store what it has, unless `settings` allow no connection.

    Raises:
        StorageError: the store does not answer, or has nothing that may be loaded.
    """
    wanted = as_locked(storage, settings)
    scheme = backend_for(wanted.uri)
    if isinstance(scheme, RemoteBackend) and not settings.offline:
        return asyncio.run(_ask(scheme.open(wanted.uri, settings), storage, settings))
    path = scheme(wanted, settings, lambda *_: None) if is_in_place(wanted) else brought(storage, settings)
    credential = "none: it lies here" if is_in_place(wanted) else "none: offline"
    if scheme is backend_for("pypi://") and not settings.offline:
        credential = "whatever pip is set up with"
    found = contents(path, deep=False) if path else None
    place = (found and found.place) or str(path or redact(wanted.uri))
    files = list(found.files.values()) if found else None
    size = sum(held.size for held in files) if files is not None else None
    return DryRun(redact(storage.uri), place, credential, None, None if files is None else len(files), size, path)


async def _ask(store: Store, storage: StorageConfig, settings: GlobalStorageConfig) -> DryRun:
    try:
        listing: Listing = await with_retries(store.list, redact(storage.uri), settings.transfer)
        selection = sort_out(listing, storage)
        return DryRun(
            uri=redact(storage.uri),
            place=listing.place,
            credential=store.credential,
            revision=listing.revision,
            files=len(selection.files),
            size=sum(file.size for file in selection.files),
            path=ArtifactSpec(listing, selection.files, storage).find(Cache.at(settings.cache_dir)),
            left_out=selection.left_out,
        )
    finally:
        await store.close()
