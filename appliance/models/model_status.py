"""One model of the config and where it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from appliance.config.limits import SloConfig, share
from appliance.config.models import ModelConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import RequestError
from appliance.core.file_lock import FileLock
from appliance.core.model import (
    DependsOnModels,
    FollowsAnotherNode,
    LimitsConcurrency,
    Model,
    Peers,
    Preparable,
    ReportsLoadTimings,
    RunsOnSeveralNodes,
)
from appliance.limits import QueueSettings, RequestQueue
from appliance.models.factory import ModelFactory
from appliance.models.fetch import fetch_artifacts, reporter
from appliance.models.fetch_progress import FetchProgress
from appliance.models.health import public_reason
from appliance.models.load_timings import LoadTimings
from appliance.models.plan_check import PlanVsActual
from appliance.models.request_counter import RequestCounter
from appliance.models.state import State

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class ModelStatus:
    """One model of the config and where it stands; written by its `Life` alone."""

    config: ModelConfig
    model: Model
    gate: RequestQueue
    tokenizer_gate: RequestQueue
    """Of requests that the tokenizer answers alone: what the engine computes does not keep them waiting."""
    state: State = State.PENDING
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    reason: str = "waiting for its turn"
    has_started: bool = False
    running: int = 0
    restarts: int = 0
    """How often it was started anew because it died."""
    answers_late: bool = False
    """While it drains, new calls are answered all the same."""
    tally: RequestCounter = field(default_factory=RequestCounter)
    progress: FetchProgress | None = None
    phases: LoadTimings = field(default_factory=LoadTimings)
    comparison: PlanVsActual | None = None
    """What its plan said, beside what its last load came to; None where there is no plan."""
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    """What the section's storages became; empty until they are here."""
    holds: Sequence[FileLock] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the bytes behind each of the section's storages, where they came from a store."""

    def enter(self, state: State, reason: str) -> None:
        """Be in a state from now on."""
        self.phases.enter(state)
        self.state, self.since, self.reason = state, datetime.now(UTC), reason
        self.has_started |= state in {State.READY, State.FOLLOWING, State.UNAVAILABLE}

    def load_timings(self) -> Mapping[str, float]:
        """What the phase `loading` of its last load was spent on, in seconds; empty where the model does not tell."""
        return self.model.load_timings() if isinstance(self.model, ReportsLoadTimings) else {}

    def load(self) -> dict[str, Any]:  # Any: JSON values
        """The seconds of its last load as the log and probes show them, of one under way those until now."""
        phases, parts = self.phases.seconds(), self.load_timings()
        shown = {
            name: {each: round(seconds, 2) for each, seconds in spent.items()}
            for name, spent in (("phases", phases), ("parts", parts))
            if spent
        }
        return {"seconds": round(sum(phases.values()), 2), **shown}

    @classmethod
    def of(cls, config: ModelConfig, factory: ModelFactory, peers: Peers) -> ModelStatus:
        """The entry of a section, which shares its limits with the other processes among its `peers`."""
        name, settings = config.name, _settings(config, peers.front_end.count)
        model = factory.create(config, peers)
        return cls(config, model, RequestQueue(name, settings), RequestQueue(name, _unpromised(settings)))

    def apply(self, config: ModelConfig, workers: int) -> None:
        """Go on by a section that differs in hot keys alone."""
        self.config = config
        settings = _settings(config, workers)
        self.gate.apply(settings)
        self.tokenizer_gate.apply(_unpromised(settings))

    def bound(self, workers: int) -> None:
        """Let in no more at once than the engine computes for one of so many workers, now that it is there to say."""
        concurrent = self.model.max_concurrent if isinstance(self.model, LimitsConcurrency) else None
        self.gate.engine_concurrent = self.tokenizer_gate.engine_concurrent = share(concurrent, workers)

    @property
    def is_busy(self) -> bool:
        """Somebody waits for it: callers, or the server that it computed for before it was to go."""
        return self.running > 0 or self.queued > 0 or (self._is_leaving and not self.is_done)

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return self.gate.queued + self.tokenizer_gate.queued

    @property
    def is_done(self) -> bool:
        """It was to go once the server that it computed for is gone, and that is so."""
        return self._is_leaving and isinstance(self.model, FollowsAnotherNode) and not self.model.is_needed

    @property
    def _is_leaving(self) -> bool:
        return self.state is State.DRAINING and isinstance(self.model, FollowsAnotherNode)

    def well(self) -> tuple[State, str]:
        """The state of a model that is healthy, and its reason."""
        if isinstance(self.model, FollowsAnotherNode):
            return State.FOLLOWING, f"it computes for {self.model.leader}, which answers"
        return State.READY, "it answers"

    @property
    def outside(self) -> str:
        """Where it stands in words for callers; why it failed speaks of paths and classes, and is for the log."""
        return f"The model {self.config.name!r} is {self.state}: {public_reason(self.state, self.reason)}"

    def require(self, done: str, *states: State) -> None:
        """Return when it is in one of the states, in which alone this can be done to it.

        Raises:
            RequestError: it is in another.
        """
        if self.state not in states:
            must = " or ".join(states)
            raise RequestError(
                f"The model {self.config.name!r} is {self.state}; it can be {done} when it is {must}", status=409
            )

    async def fetch(
        self, factory: ModelFactory, settings: GlobalStorageConfig, has_stopped: Callable[[], bool]
    ) -> None:
        """Bring its bytes, in a thread, and hold them until they are released; raises as `fetch_artifacts` does.

        What its start needs and no byte changes begins meanwhile.
        """
        if isinstance(self.model, Preparable):
            self.model.prepare(settings.cache_dir)
        self.progress = FetchProgress()
        report = reporter(self.config.name, self.progress, has_stopped)
        brought = await asyncio.to_thread(fetch_artifacts, factory, self.config, settings, report)
        self.artifacts, self.digests, self.holds = brought.artifacts, brought.digests, brought.holds
        self.comparison = PlanVsActual.of(brought.plan) if brought.plan else None

    def compare(self) -> None:
        """Hold what was planned against what its load came to, where there is a plan."""
        if self.comparison is not None:
            self.comparison = made = self.comparison.measure(self.model, self.phases.seconds()[State.LOADING])
            log.info("model.measured", model=self.config.name, **made.describe(), ratio=made.ratios)

    def release(self, model: Model) -> None:
        """Forget what was loaded, for a model that is not; its bytes may be pruned then."""
        for each in self.holds:
            each.close()
        self.model, self.artifacts, self.holds, self.progress = model, {}, (), None
        self.comparison = None

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """The entry as probes show it."""
        shown: dict[str, Any] = {
            "name": self.config.name,
            "state": self.state,
            "since": self.since.isoformat(timespec="milliseconds"),
            "reason": self.reason,
            "running": self.running,
            "queued": self.queued,
            "restarts": self.restarts,
        }
        try:
            return shown | self._details()
        except Exception as error:
            log.error("model.not_described", model=self.config.name, error=type(error).__name__)
            return shown

    def _details(self) -> dict[str, Any]:  # Any: JSON values
        shown: dict[str, Any] = {**self.config.facts}
        if self.state is State.FETCHING and self.progress is not None:
            shown["progress"] = self.progress.describe()
        if self.config.has_engine:
            shown["load"] = self.load()
        if self.comparison is not None:
            shown["plan"] = self.comparison.describe()
        if isinstance(self.model, RunsOnSeveralNodes) and (nodes := self.model.nodes()):
            shown["nodes"] = {str(rank): standing for rank, standing in nodes.items()}
        if isinstance(self.model, DependsOnModels):
            shown["upstreams"] = self.model.upstreams()
        return shown


def _settings(config: ModelConfig, workers: int) -> QueueSettings:
    return QueueSettings(config.limits, config.slo).share(workers)


def _unpromised(settings: QueueSettings) -> QueueSettings:
    return QueueSettings(settings.limits, SloConfig())
