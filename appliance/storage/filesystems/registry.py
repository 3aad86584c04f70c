"""The table of URI schemes: which filesystem reads each of them.

A further scheme is one more row of `FILESYSTEMS`; any other scheme that fsspec knows needs none.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.disk import OnProgress
from appliance.core.errors import StorageError
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import redact, scheme_of
from appliance.storage.filesystems.azure_account import is_azure
from appliance.storage.filesystems.base import Store
from appliance.storage.selection import require_no_pickles


@dataclass(frozen=True, slots=True)
class LocalFilesystem:
    """Files that are used in place; `finder` is `module:function`."""

    finder: str

    def find(self, storage: StorageConfig, settings: GlobalStorageConfig) -> Path:
        """Return the path of a storage."""
        path = cast("Path", _load(self.finder)(storage.uri, settings))
        require_no_pickles(path, storage)
        return path


@dataclass(frozen=True, slots=True)
class RemoteFilesystem:
    """Files that are listed and read over the network; `opener` is `module:class` of the store.

    `instead` is what to set where it takes no `storage.options`: they would reach hosts that a redirect leads to.
    `endpoint` is `module:function` for the address of the store, where the same URI means other files at another one.
    """

    opener: str
    instead: str = ""
    endpoint: str = ""

    def open(self, storage: StorageConfig, settings: GlobalStorageConfig) -> Store:
        """Return the store of a storage, without a request."""
        options = storage.options.get_secret_value()
        if options and self.instead:
            raise StorageError(f"{redact(storage.uri)}: takes no storage.options; {self.instead}")
        return cast("Store", _load(self.opener)(storage.uri, settings, *([options] if options else [])))


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """Files in packages that an external tool downloads; `fetcher` is `module:function`."""

    fetcher: str

    def fetch(self, storage: StorageConfig, settings: GlobalStorageConfig, on_progress: OnProgress) -> Path:
        """Return the path in the cache of what a storage names, downloaded if it is not there."""
        path = cast("Path", _load(self.fetcher)(storage.uri, settings, on_progress))
        require_no_pickles(path, storage)
        return path


Filesystem = LocalFilesystem | RemoteFilesystem | PackageIndex

_HERE = "appliance.storage.filesystems"

FILESYSTEMS: dict[str, Filesystem] = {
    "file": LocalFilesystem(f"{_HERE}.local:find_path"),
    "pvc": LocalFilesystem(f"{_HERE}.local:find_in_volume"),
    "hf": RemoteFilesystem(f"{_HERE}.huggingface:HubStore", "set token in storage.credentials.hf"),
    "s3": RemoteFilesystem(f"{_HERE}.s3:S3Store", endpoint=f"{_HERE}.s3:find_endpoint"),
    "s3a": RemoteFilesystem(f"{_HERE}.s3:S3Store", endpoint=f"{_HERE}.s3:find_endpoint"),
    "gs": RemoteFilesystem(f"{_HERE}.gcs:GcsStore", endpoint=f"{_HERE}.gcs:find_endpoint"),
    "az": RemoteFilesystem(f"{_HERE}.azure:AzureStore"),
    "abfs": RemoteFilesystem(f"{_HERE}.azure:AzureStore"),
    "abfss": RemoteFilesystem(f"{_HERE}.azure:AzureStore"),
    "https": RemoteFilesystem(f"{_HERE}.http:HttpStore", "set headers in storage.credentials.http"),
    "http": RemoteFilesystem(f"{_HERE}.http:HttpStore", "set headers in storage.credentials.http"),
    "oci": RemoteFilesystem(f"{_HERE}.oci:OciStore", "set the login in storage.credentials.oci"),
    "pypi": PackageIndex(f"{_HERE}.pypi:fetch"),
    "sftp": RemoteFilesystem(f"{_HERE}.sftp:SftpStore"),
    "ssh": RemoteFilesystem(f"{_HERE}.sftp:SftpStore"),
}

# Any other scheme of fsspec's, and chains such as `zip::s3://BUCKET/FILE.zip`.
_ANY = RemoteFilesystem(f"{_HERE}.store:FilesystemStore")


def filesystem_for(uri: str) -> Filesystem:
    """Return the filesystem of a URI or plain path."""
    scheme = scheme_of(uri) or "file"
    if scheme in ("http", "https") and is_azure(uri):
        scheme = "az"
    if found := FILESYSTEMS.get(scheme):
        return found
    if scheme not in fsspec_schemes():
        raise StorageError(f"{redact(uri)}: unknown scheme {scheme!r}; {suggest_scheme(scheme)}")
    return _ANY


def find_endpoint(uri: str, settings: GlobalStorageConfig) -> str | None:
    """Return the address of the store that a URI is read from; None where there is but one."""
    filesystem = FILESYSTEMS.get(scheme_of(uri) or "file")
    if not isinstance(filesystem, RemoteFilesystem) or not filesystem.endpoint:
        return None
    return cast("str | None", _load(filesystem.endpoint)(uri, settings))


_OTHER_NAMES = {"huggingface": "hf"}


def suggest_scheme(scheme: str) -> str:
    """Return which schemes an unknown one may mean."""
    known = f"{known_names('schemes', FILESYSTEMS)}, besides those of fsspec, and plain paths need none"
    meant = _OTHER_NAMES.get(scheme, scheme)
    return did_you_mean(meant, {*FILESYSTEMS, *fsspec_schemes()}) or known


def fsspec_schemes() -> Sequence[str]:
    """Return the schemes that fsspec knows, whether or not their packages are installed."""
    from fsspec import available_protocols

    schemes: Sequence[str] = available_protocols()
    return schemes


def missing_package(scheme: str) -> str | None:
    """Return which package a scheme of fsspec's needs if it is not installed, in fsspec's words."""
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        return str(error)
    return None


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
