"""
One model of the config and where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

from appliance.contract import Dependent, Model
from appliance.errors import CallError
from appliance.lifecycle.progress import Progress
from appliance.lifecycle.state import State
from appliance.lifecycle.tally import Tally
from appliance.models.section import ModelSection


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
    tally: Tally = field(default_factory=Tally)
    progress: Progress | None = None
    holds: Sequence[IO[bytes]] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the bytes behind each of the section's storages, where they came from a store."""

    def require(self, done: str, *states: State) -> None:
        """
        Return when it is in one of the states, in which alone this can be done to it.

        Raises:
            CallError: it is in another.
        """
        if self.state not in states:
            must = " or ".join(states)
            raise CallError(
                f"The model {self.section.name!r} is {self.state}; it can be {done} when it is {must}", status=409
            )

    def release(self, model: Model) -> None:
        """
        Forget what was loaded, for a model that is not; its bytes may be pruned then.
        """
        for each in self.holds:
            each.close()
        self.model, self.holds, self.progress = model, (), None

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
            **self.section.facts,
        }
        if self.state is State.FETCHING and self.progress is not None:
            shown["progress"] = self.progress.describe()
        if isinstance(self.model, Dependent):
            shown["upstreams"] = self.model.upstreams()
        return shown
