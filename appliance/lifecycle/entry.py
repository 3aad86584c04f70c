"""
One model of the config and where it stands.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from appliance.contract import Dependent, Model
from appliance.lifecycle.state import State
from appliance.models.section import ModelSection


@dataclass(frozen=True, slots=True)
class Progress:
    """
    How far fetching is: bytes of the part under way, None where the total is unknown.
    """

    part: str
    fetched: int
    total: int | None
    started: float = field(default_factory=time.monotonic)

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """
        Bytes, bytes a second, and seconds to go as far as they can be told.
        """
        rate = self.fetched / max(time.monotonic() - self.started, 0.001)
        left = None if self.total is None or not rate else round((self.total - self.fetched) / rate, 1)
        return {
            "part": self.part,
            "fetched_bytes": self.fetched,
            "total_bytes": self.total,
            "bytes_per_second": round(rate),
            "eta_seconds": left,
        }


@dataclass(slots=True)
class Entry:
    """
    One model of the config and where it stands; written by `Lifecycle` alone.
    """

    section: ModelSection
    model: Model
    state: State = State.PENDING
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    reason: str = "waiting for its turn"
    has_started: bool = False
    running: int = 0
    progress: Progress | None = None

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """
        The entry as probes show it.
        """
        shown: dict[str, Any] = {
            "name": self.section.name,
            "state": self.state,
            "since": self.since.isoformat(timespec="milliseconds"),
            "reason": self.reason,
            "running": self.running,
        }
        if self.state is State.FETCHING and self.progress is not None:
            shown["progress"] = self.progress.describe()
        if isinstance(self.model, Dependent):
            shown["upstreams"] = self.model.upstreams()
        return shown
