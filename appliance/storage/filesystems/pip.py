"""Fetch a wheel with pip, which knows the user's index, proxy, certificates and credentials, and checks digests."""

from __future__ import annotations

import importlib.machinery
import re
import sys
from pathlib import Path

from appliance.core import child_process
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    NoSpaceError,
    StorageError,
    StorageUnavailableError,
)
from appliance.core.uri import redact
from appliance.storage.cache import Report
from appliance.storage.disk_errors import disk_faults
from appliance.storage.progress import DownloadProgress

# pip has one exit status for every failure and no other machine-readable account of it, so what it said is searched:
# the only place where we sort errors by text. The first row that matches wins: what may pass goes before what is final.
_FAULTS: tuple[tuple[re.Pattern[str], type[StorageError], str], ...] = (
    (
        re.compile(r".*(?:No space left on device|Disk quota exceeded|File too large).*"),
        NoSpaceError,
        "free some space, or point storage.cache_dir at a larger disk",
    ),
    (
        re.compile(r".*(?:DO NOT MATCH THE HASHES|located at .* is invalid).*"),
        ArtifactCorruptError,
        "the wheel is not the one the index promises: ask whoever keeps the index",
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


def download(name: str, version: str, scratch: Path, report: Report) -> Path:
    """The wheel of exactly this version, in the empty directory `scratch`.

    Raises:
        ArtifactNotFoundError: the index has no such version.
        StorageUnavailableError: the index does not answer.
    """
    # Not importlib.util.find_spec: setuptools listens there, and turns off its distutils in a process that asks
    # for pip.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise StorageError(f"pypi://{name}: pip is not installed; install it with: {sys.executable} -m ensurepip")
    log_file = scratch / "pip.log"
    ended = child_process.run(
        _command(f"{name}=={version}", scratch, log_file),
        # pip unpacks and joins in the temporary directory: ours is removed with everything else, and on the right disk.
        {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        DownloadProgress(report),
    )
    wheels = list(scratch.glob("*.whl"))
    if ended.status != 0 or len(wheels) != 1:
        with disk_faults(log_file):
            account = log_file.read_text(errors="replace") if log_file.exists() else ""
        raise _fault(f"pypi://{name}=={version}", "\n".join((account, *ended.lines)), ended)
    return wheels[0]


def _command(requirement: str, scratch: Path, log_file: Path) -> list[str]:
    options = (
        "--no-deps --only-binary=:all: --ignore-requires-python --disable-pip-version-check "
        # pip's own cache would keep the wheel a second time.
        "--no-cache-dir --no-input --no-color --progress-bar raw"
    )
    # -P keeps a pip.py in the current directory from being taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", *options.split()]
    return [*command, "--log", str(log_file), "--dest", str(scratch), requirement]


def _fault(what: str, account: str, ended: child_process.ChildResult) -> StorageError:
    for pattern, error, remedy in _FAULTS:
        if found := pattern.search(account):
            return error(f"{what}: {_plain(found[0])}; {remedy}")
    last = " / ".join(_plain(line) for line in ended.lines[-3:]) or "it said nothing"
    return StorageError(f"{what}: pip ended with status {ended.status}: {last}")


def _plain(line: str) -> str:
    """A line of pip's log without its time stamp, level and secrets."""
    return redact(re.sub(r"^[\d-]+T[\d:,]+ +|\b(?:ERROR|WARNING): ", "", line)).strip()
