"""
What a child that fetches says about how far it is.
"""

from __future__ import annotations

import re

from appliance.storage.cache import Report

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)$")


class Progress:
    """
    Passes on lines such as ``Progress 10 of 200``; any other line, or none, only says that the work goes on.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = 0
        self._total: int | None = None

    def __call__(self, line: str) -> None:
        if found := _PROGRESS.match(line):
            # pip writes 0 for a total it does not know.
            self._done, self._total = int(found[1]), int(found[2]) or None
        self._report(self._done, self._total)
