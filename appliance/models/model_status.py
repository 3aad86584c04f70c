"""The status of one model, which probes, listings and metrics read; only its `ModelRunner` writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import structlog

from appliance.config.models import ModelConfig
from appliance.core.model import DependsOnModels, FollowsAnotherNode, Model, ReportsLoadTimings, RunsOnSeveralNodes
from appliance.limits.queue import RequestQueue
from appliance.models.fetch import FetchProgress
from appliance.models.health import ModelReport, public_reason
from appliance.models.presets import RequestPresets
from appliance.models.state import RULES, State, StateRule
from appliance.planner.planner import Plan
from appliance.planner.predictor_plan import PredictorPlan

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_LOAD_STATES = frozenset({State.PENDING, State.FETCHING, State.LOADING, State.PROVING})


class LoadTimings:
    """Seconds that a model spent in each state of its latest load, for the log, the probes and the metrics."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[State, float] = {}
        self._state = State.PENDING
        self._entered = clock()

    def enter(self, state: State) -> None:
        """Begin to count for a state."""
        is_new_load = state in {State.PENDING, State.RESTARTING}
        self._seconds = {} if is_new_load else {**self._seconds, **self._current()}
        self._state, self._entered = state, self._clock()

    def seconds(self) -> Mapping[State, float]:
        """Return the seconds of each state in the order of the load, including the current one."""
        known = {**self._seconds, **self._current()}
        return {state: seconds for state, seconds in known.items() if state in _LOAD_STATES}

    def _current(self) -> Mapping[State, float]:
        return {self._state: self._clock() - self._entered}


@dataclass(slots=True)
class RequestTotals:
    """How many requests of a model succeeded and failed, and the nanoseconds that they took; `dispatch` writes it."""

    succeeded: int = 0
    succeeded_ns: int = 0
    failed: int = 0
    failed_ns: int = 0
    last_started_ms: int = 0
    """When the latest request began, in milliseconds since 1970; 0 if there was none."""

    def add(self, taken_ns: int, *, is_success: bool) -> None:
        """Count a request that ends now."""
        self.last_started_ms = (time.time_ns() - taken_ns) // 1_000_000
        if is_success:
            self.succeeded, self.succeeded_ns = self.succeeded + 1, self.succeeded_ns + taken_ns
        else:
            self.failed, self.failed_ns = self.failed + 1, self.failed_ns + taken_ns


@dataclass(frozen=True, slots=True)
class PlanVsActual:
    """Planned and measured figures of a model by the same names; `measured` is empty until the model is loaded.

    Bytes are those of one rank: the most weights, the least cache. `kv_tokens` are those of one copy of the model.
    """

    planned: Mapping[str, float]
    measured: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan | PredictorPlan) -> Self:
        """Return the figures of a plan, with nothing measured yet."""
        if isinstance(plan, PredictorPlan):
            return cls({"weight_bytes": plan.size_bytes, "load_seconds": plan.timing.load_seconds})
        figures: dict[str, float] = {"weight_bytes": plan.weight_bytes, "load_seconds": plan.timing.load_seconds}
        if plan.kv_blocks:
            cache_bytes = min(rank.kv_cache_bytes for rank in plan.ranks)
            figures |= {"kv_cache_bytes": cache_bytes, "kv_tokens": plan.kv_tokens}
        return cls(figures)

    @property
    def ratios(self) -> Mapping[str, float]:
        """Measured divided by planned, of the figures that have both."""
        both = {name: planned for name, planned in self.planned.items() if planned and name in self.measured}
        return {name: round(self.measured[name] / planned, 3) for name, planned in both.items()}

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """Return both sides as probes show them."""
        return {"planned": self.planned, **({"measured": self.measured} if self.measured else {})}


@dataclass(slots=True)
class ModelStatus:
    """One model of the config and its state."""

    config: ModelConfig
    model: Model
    queue: RequestQueue
    tokenizer_queue: RequestQueue
    """For requests that only the tokenizer answers: they do not wait for the engine."""
    presets: RequestPresets
    requests: RequestTotals = field(default_factory=RequestTotals)
    """Shared with the model that it replaces."""
    state: State = State.PENDING
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    reason: str = "waiting for its turn to load"
    has_started: bool = False
    """It was ready once, or waits for nothing but other servers."""
    was_ready: bool = False
    """It was ready once, so load balancers may send it requests."""
    restarts: int = 0
    """How often it was restarted because it died."""
    accepts_while_draining: bool = False
    timings: LoadTimings = field(default_factory=LoadTimings)
    progress: FetchProgress | None = None
    """The progress of its download; None before it began."""
    plan: PlanVsActual | None = None
    """What its plan said and what its latest load measured; None without a plan."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """The digests of the files of each of its storages, where they came from a store."""

    def enter(self, state: State, reason: str) -> None:
        """Be in a state from now on; for `ModelRunner`."""
        self.timings.enter(state)
        self.state, self.since, self.reason = state, datetime.now(UTC), reason
        self.was_ready |= self.rule.is_ready
        self.has_started |= self.was_ready or state is State.UNAVAILABLE

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.config.name

    @property
    def rule(self) -> StateRule:
        """What its state means."""
        return RULES[self.state]

    @property
    def running(self) -> int:
        """Requests that the model works on."""
        return self.queue.running_requests + self.tokenizer_queue.running_requests

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return self.queue.queued + self.tokenizer_queue.queued

    @property
    def is_busy(self) -> bool:
        """Requests are running or queued, or the machine that it computes for still needs it."""
        is_following = self.state is State.DRAINING and isinstance(self.model, FollowsAnotherNode)
        return self.running > 0 or self.queued > 0 or (is_following and not self.is_released)

    @property
    def is_released(self) -> bool:
        """It was draining until the machine that it computes for had gone, and that has happened."""
        model = self.model
        return self.state is State.DRAINING and isinstance(model, FollowsAnotherNode) and not model.is_needed

    @property
    def public_state(self) -> str:
        """Its state and the reason, without the text of errors, which is for the log."""
        return f"{self.state}: {public_reason(self.state, self.reason)}"

    def client_message(self, name: str) -> str:
        """Return its state in a sentence for clients that use this name of it."""
        return f"The model {name!r} is {self.public_state}"

    def load_timings(self) -> Mapping[str, float]:
        """Return the seconds of each part of its latest load; empty if the model does not measure them."""
        return self.model.load_timings() if isinstance(self.model, ReportsLoadTimings) else {}

    def describe_load(self) -> dict[str, Any]:  # Any: JSON values
        """Return the seconds of its latest load as the log and the probes show them, until now if it is running."""
        phases = self.timings.seconds()
        shown = {
            name: {str(part): round(seconds, 2) for part, seconds in spent.items()}
            for name, spent in (("phases", phases), ("parts", self.load_timings()))
            if spent
        }
        return {"seconds": round(sum(phases.values()), 2), **shown}

    def describe(self) -> ModelReport:
        """Return the status as probes show it."""
        shown: ModelReport = {
            "name": self.name,
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
            log.error("model.describe_failed", model=self.name, error=type(error).__name__)
            return shown

    def _details(self) -> ModelReport:
        shown: ModelReport = {**self.config.probe_fields}  # type: ignore[typeddict-item]  # each class has its own
        if self.state is State.FETCHING and self.progress is not None:
            shown["progress"] = self.progress.describe()
        if self.config.has_engine:
            shown["load"] = self.describe_load()
        if self.plan is not None:
            shown["plan"] = self.plan.describe()
        if isinstance(self.model, RunsOnSeveralNodes) and (nodes := self.model.nodes()):
            shown["nodes"] = {str(rank): state for rank, state in nodes.items()}
        if isinstance(self.model, DependsOnModels):
            shown["upstreams"] = self.model.upstreams()
        return shown
