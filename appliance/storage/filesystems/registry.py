"""The one table of storage schemes, and the one way into it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import StorageError
from appliance.core.suggestions import did_you_mean
from appliance.core.uri import redact, scheme_of
from appliance.storage import remote_fetch
from appliance.storage.cache import Report
from appliance.storage.filesystems import local, pvc, pypi
from appliance.storage.filesystems.base import Store

Bring = Callable[[StorageConfig, GlobalStorageConfig, Report], Path]
"""
Makes the bytes of a storage section a local directory or single file.
"""


@dataclass(frozen=True, slots=True)
class RemoteBackend:
    """
    A scheme whose files are listed and read over the network; `opener` is `module:name` of what makes its `Store` from
    a URI and the settings, imported when it is first used.
    """

    opener: str

    def open(self, uri: str, settings: GlobalStorageConfig) -> Store:
        """The store of a URI; nothing is asked of it yet.

        Raises:
            StorageError: the URI is not as this scheme's are.
            MissingExtraError: the package that speaks to such stores is not installed.
        """
        module, _, name = self.opener.partition(":")
        make = getattr(importlib.import_module(module), name)
        return cast("Store", make(uri, settings))

    def __call__(self, storage: StorageConfig, settings: GlobalStorageConfig, report: Report) -> Path:
        return remote_fetch.fetch(self.open(storage.uri, settings), storage, settings, report)


_AZURE = RemoteBackend("appliance.storage.filesystems.azure:AzureStore")
_WEB = RemoteBackend("appliance.storage.filesystems.http:open_store")

SCHEMES: Mapping[str, Bring] = {
    "file": local.find,
    "hf": RemoteBackend("appliance.storage.filesystems.huggingface:HubStore"),
    "s3": RemoteBackend("appliance.storage.filesystems.s3:S3Store"),
    "gs": RemoteBackend("appliance.storage.filesystems.gcs:GcsStore"),
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "https": _WEB,
    "http": _WEB,
    "pvc": pvc.find,
    "pypi": pypi.fetch,
    "memory": RemoteBackend("appliance.storage.filesystems.memory:MemoryStore"),
}


def backend_for(uri: str) -> Bring:
    """The row of the table that a URI leads to.

    Raises:
        StorageError: there is none.
    """
    scheme = scheme_of(uri) or "file"
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES) or f"known are {', '.join(SCHEMES)} and plain paths"
        raise StorageError(f"{redact(uri)}: unknown scheme {scheme!r}; {hint}")
    return SCHEMES[scheme]
