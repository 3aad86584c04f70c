"""
Names of files that others chose, and that are to become paths of ours.
"""

from __future__ import annotations

import re

_DRIVE = re.compile(r"[A-Za-z]:")


def fault(name: str) -> str | None:
    """
    What keeps a relative name with `/` from being a path below a directory of ours, or None.
    """
    faults = {
        "has no name": not name.strip("/."),
        "has an absolute name": name.startswith("/") or bool(_DRIVE.match(name)),
        "leads out of its place": ".." in name.split("/"),
        "has a backslash or NUL in its name": "\\" in name or "\0" in name,
    }
    return next((fault for fault, found in faults.items() if found), None)
