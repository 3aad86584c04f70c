"""Checks of file names that others chose, before they become paths of ours."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from urllib.parse import unquote

from appliance.core.errors import StorageError
from appliance.core.uri import redact

_DRIVE = re.compile(r"[A-Za-z]:")


def name_error(name: str) -> str | None:
    """Return why a relative name with `/` is no safe path below a directory of ours, or None if it is one."""
    errors = {
        "has no name": not name.strip("/."),
        "has an absolute name": name.startswith("/") or bool(_DRIVE.match(name)),
        "leads out of its directory": ".." in name.split("/"),
        "has a backslash or NUL in its name": "\\" in name or "\0" in name,
    }
    return next((error for error, applies in errors.items() if applies), None)


def decode_path(uri: str, path: str, container: str) -> str:
    """Return the percent-decoded path of a URI; it must stay in its `container`, such as "model"."""
    if "?" in path or "#" in path:
        raise StorageError(f"{redact(uri)}: has a query or fragment; write '?' as %3F and '#' as %23")
    parts = [part for part in unquote(path).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise StorageError(f"{redact(uri)}: the path leads out of the {container}; remove '..'")
    return "/".join(parts)


def name_conflict(names: Collection[str]) -> str | None:
    """Return why files of these safe names cannot be in one directory on every file system, or None if they can."""
    for name in names:
        if parent := next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in names), None):
            return f"{parent!r} is both a file and a directory"
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            return f"{other!r} and {name!r} differ only in case"
    return None
