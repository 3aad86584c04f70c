"""`hf://OWNER/NAME@REVISION/path`: how models of the Hugging Face hub are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from appliance.core.errors import StorageError
from appliance.core.uri import redact

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
class HubUri:
    """A file or directory in one revision of a model; `path` is "" for all of it."""

    name: str
    revision: str
    path: str

    def __str__(self) -> str:
        # KServe's sign where `@` would make the name look like a user's in any other URI, to be taken out of logs.
        sign = "@" if "/" in self.name else ":"
        return f"hf://{self.name}{sign}{self.revision}" + (f"/{self.path}" if self.path else "")

    @property
    def owner(self) -> str:
        """Who the model belongs to; "" for those from before there were owners."""
        return self.name.rpartition("/")[0]

    @property
    def is_commit(self) -> bool:
        """Whether the revision is one that cannot move."""
        return bool(_COMMIT.fullmatch(self.revision))


def parse(uri: str) -> HubUri:
    """Read an `hf://` URI; without a revision it is `main`.

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
    return HubUri(name, revision, "/".join(parts))
