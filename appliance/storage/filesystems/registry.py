"""The table of URI schemes: which filesystem reads each of them.

A further scheme is one more row of `FILESYSTEMS`, or of the argument of `register` for a test.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import StorageError
from appliance.core.progress import OnProgress
from appliance.core.suggestions import did_you_mean
from appliance.core.uri import redact, scheme_of
from appliance.storage.filesystems.base import Store


@dataclass(frozen=True, slots=True)
class LocalFilesystem:
    """Files that are used in place; `finder` is `module:function`."""

    finder: str

    def find(self, uri: str, settings: GlobalStorageConfig) -> Path:
        """Return the path of a URI."""
        return cast("Path", _load(self.finder)(uri, settings))


@dataclass(frozen=True, slots=True)
class RemoteFilesystem:
    """Files that are listed and read over the network; `opener` is `module:class` of the store."""

    opener: str

    def open(self, uri: str, settings: GlobalStorageConfig) -> Store:
        """Return the store of a URI, without a request."""
        return cast("Store", _load(self.opener)(uri, settings))


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """Files in packages that an external tool downloads; `fetcher` is `module:function`."""

    fetcher: str

    def fetch(self, uri: str, settings: GlobalStorageConfig, on_progress: OnProgress) -> Path:
        """Return the path in the cache of what a URI names, downloaded if it is not there."""
        return cast("Path", _load(self.fetcher)(uri, settings, on_progress))


Filesystem = LocalFilesystem | RemoteFilesystem | PackageIndex

_HERE = "appliance.storage.filesystems"

FILESYSTEMS: dict[str, Filesystem] = {
    "file": LocalFilesystem(f"{_HERE}.local:find_path"),
    "pvc": LocalFilesystem(f"{_HERE}.local:find_in_volume"),
    "hf": RemoteFilesystem(f"{_HERE}.huggingface:HubStore"),
    "s3": RemoteFilesystem(f"{_HERE}.s3:S3Store"),
    "gs": RemoteFilesystem(f"{_HERE}.gcs:GcsStore"),
    "az": RemoteFilesystem(f"{_HERE}.azure:AzureStore"),
    "abfs": RemoteFilesystem(f"{_HERE}.azure:AzureStore"),
    "abfss": RemoteFilesystem(f"{_HERE}.azure:AzureStore"),
    "https": RemoteFilesystem(f"{_HERE}.http:open_store"),
    "http": RemoteFilesystem(f"{_HERE}.http:open_store"),
    "pypi": PackageIndex(f"{_HERE}.pypi:fetch"),
}


def filesystem_for(uri: str) -> Filesystem:
    """Return the filesystem of a URI or plain path."""
    scheme = scheme_of(uri) or "file"
    if scheme not in FILESYSTEMS:
        hint = did_you_mean(scheme, FILESYSTEMS) or f"known are {', '.join(FILESYSTEMS)} and plain paths"
        raise StorageError(f"{redact(uri)}: unknown scheme {scheme!r}; {hint}")
    return FILESYSTEMS[scheme]


@contextmanager
def register(scheme: str, filesystem: Filesystem) -> Iterator[None]:
    """Add a row to the table for the duration of a test."""
    FILESYSTEMS[scheme] = filesystem
    try:
        yield
    finally:
        del FILESYSTEMS[scheme]


def _load(reference: str) -> Any:  # Any: what the module has under this name
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
