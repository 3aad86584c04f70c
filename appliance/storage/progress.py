"""What a child that fetches says about how far it is."""

from __future__ import annotations

import re
import time

from appliance.config.storage import TransferConfig
from appliance.core.errors import StorageTimeoutError
from appliance.storage.cache import Report

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)$")


class DownloadProgress:
    """
    Passes on lines such as ``DownloadProgress 10 of 200``; any other line, or none, only says that the work goes on.
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


def bounded(report: Report, what: str, limits: TransferConfig) -> Report:
    """The same report, that also stops what stands still or takes too long; `what` names it.

    Raises, when it is called:
        StorageTimeoutError: no byte more came for `stall_seconds`, or it was not done within `timeout_seconds`.
    """
    begun = moved = time.monotonic()
    furthest = -1

    def listen(done: int, total: int | None) -> None:
        nonlocal moved, furthest
        now = time.monotonic()
        if done != furthest:
            moved, furthest = now, done
        if now - moved > limits.stall_seconds:
            raise StorageTimeoutError(f"{what}: nothing came for {limits.stall_seconds:g} seconds; check the network")
        if now - begun > limits.timeout_seconds:
            raise StorageTimeoutError(
                f"{what}: not fetched within {limits.timeout_seconds:g} seconds; raise storage.transfer.timeout_seconds"
            )
        report(done, total)

    return listen
