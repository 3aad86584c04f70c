"""Names of files that others chose, and that are to become paths of ours."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

_DRIVE = re.compile(r"[A-Za-z]:")


def fault(name: str) -> str | None:
    """What keeps a relative name with `/` from being a path below a directory of ours, or None."""
    faults = {
        "has no name": not name.strip("/."),
        "has an absolute name": name.startswith("/") or bool(_DRIVE.match(name)),
        "leads out of its place": ".." in name.split("/"),
        "has a backslash or NUL in its name": "\\" in name or "\0" in name,
    }
    return next((fault for fault, found in faults.items() if found), None)


def clash(names: Collection[str]) -> str | None:
    """What keeps files of these names, each good, from lying in one directory on every file system, or None."""
    for name in names:
        if above := next((str(above) for above in PurePosixPath(name).parents if str(above) in names), None):
            return f"{above!r} is both a file and a directory"
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            return f"{other!r} and {name!r} differ only in case"
    return None
