"""
`hf://OWNER/NAME@REVISION/path`: models of the Hugging Face hub, or of a mirror that `HF_ENDPOINT` names.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import structlog

from appliance.errors import StorageError, StorageUnavailableError
from appliance.storage import hub
from appliance.storage.cache import Cache, Report
from appliance.storage.manifest import size_of
from appliance.storage.section import StorageSection, StorageSettings
from appliance.storage.uri import redact

log = structlog.get_logger()

# https://huggingface.co/docs/huggingface_hub/package_reference/hf_uris; `:` before a revision is KServe's way.
_LOCATION = re.compile(
    r"(?P<name>(?:[^/@:]+/)?[^/@:]+)"
    r"(?:[@:](?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/]*))?"
    r"(?:/(?P<path>.*))?",
    re.DOTALL,
)
_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]*\w)?(?:/\w(?:[\w.-]*\w)?)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")

# What stands before the names of repositories that are no models.
_OTHER_KINDS = frozenset({"datasets", "spaces", "buckets", "kernels"})


@dataclass(frozen=True, slots=True)
class HubPath:
    """
    A file or directory in one revision of a model; `path` is "" for all of it.
    """

    name: str
    revision: str
    path: str

    def __str__(self) -> str:
        # KServe's sign where `@` would make the name look like a user's in any other URI, to be taken out of logs.
        sign = "@" if "/" in self.name else ":"
        return f"hf://{self.name}{sign}{self.revision}" + (f"/{self.path}" if self.path else "")


def fetch(storage: StorageSection, settings: StorageSettings, report: Report) -> Path:
    """
    The file or directory of the model, fetched once for each commit.
    """
    wanted = parse(storage.uri)
    cache = Cache.at(settings.cache_dir)
    try:
        pinned = replace(wanted, revision=_commit(wanted, report))
    except StorageUnavailableError as error:
        return _brought_before(wanted, cache, error) / wanted.path
    files = cache.build(str(pinned), lambda target: _fill(target, pinned, report), report)
    cache.note(str(wanted), pinned.revision)
    return files / wanted.path


def parse(uri: str) -> HubPath:
    """
    Read an `hf://` URI; without a revision it is `main`.

    Raises:
        StorageError: it does not name a model, or its path leads elsewhere.
    """
    found = _LOCATION.fullmatch(uri.partition("://")[2])
    name, revision, path = found.group("name", "revision", "path") if found else ("", None, None)
    # A path behind a name of one part would be taken for its second part, but for a revision between them.
    is_torn = "/" not in name and revision is None and path
    if not _NAME.fullmatch(name) or name.partition("/")[0] in _OTHER_KINDS or is_torn:
        raise StorageError(f"{redact(uri)}: no name of a model; write hf://OWNER/NAME@REVISION/path")
    revision = "main" if revision is None else unquote(revision)
    if not _REVISION.fullmatch(revision):
        raise StorageError(f"{redact(uri)}: no revision; write a branch, a tag or a commit: hf://{name}@REVISION")
    path = path or ""
    if "?" in path or "#" in path:
        raise StorageError(f"{redact(uri)}: has a query or fragment; write '?' as %3F and '#' as %23")
    parts = [part for part in unquote(path).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise StorageError(f"{redact(uri)}: the path leads out of the model; remove '..'")
    return HubPath(name, revision, "/".join(parts))


def _commit(wanted: HubPath, report: Report) -> str:
    """
    The commit that the revision means now; a commit means itself for ever, and nobody need be asked.
    """
    if _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    return hub.resolve(str(wanted), wanted.name, wanted.revision, partial(report, 0, None))


def _brought_before(wanted: HubPath, cache: Cache, error: StorageUnavailableError) -> Path:
    """
    While the hub does not answer: what the revision meant when it was last fetched, if all of that is there.
    """
    known = cache.noted(str(wanted))
    files = cache.find(str(replace(wanted, revision=known))) if known else None
    if files is None:
        raise error
    log.warning("artifact.unconfirmed", uri=str(wanted), commit=known, reason=str(error))
    return files


def _fill(target: Path, wanted: HubPath, report: Report) -> None:
    begun = time.monotonic()
    hub.download(str(wanted), wanted.name, wanted.revision, wanted.path, target, report)
    log.info("artifact.fetched", uri=str(wanted), bytes=size_of(target), seconds=round(time.monotonic() - begun, 3))
