"""The states of a model and what each means to probes and requests: one table, which is tested row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The state of a model; `RULES` says what each means."""

    PENDING = "pending"
    """It waits for its turn to load."""
    FETCHING = "fetching"
    """Its files are being downloaded; `progress` has bytes, rate and remaining time."""
    LOADING = "loading"
    """The engine starts."""
    PROVING = "proving"
    """The warm-up request is running."""
    READY = "ready"
    """The warm-up request succeeded; the model serves requests."""
    FOLLOWING = "following"
    """A worker node: it computes for rank 0 on another machine, which serves the requests."""
    UNAVAILABLE = "unavailable"
    """Its upstreams do not respond; it recovers without a restart once they do."""
    RESTARTING = "restarting"
    """The engine died and is restarted; `reason` has the fault and the time of the next attempt."""
    DRAINING = "draining"
    """It is being unloaded or replaced, or the server received SIGTERM: running requests finish."""
    UNLOADED = "unloaded"
    """An operator unloaded it: its requests are refused."""
    FAILED = "failed"
    """It cannot serve; `reason` has the fault, and only a restart of the server can help."""
    STOPPED = "stopped"
    """The server has closed the model and exits."""


@dataclass(frozen=True, slots=True)
class StateRule:
    """What a state means to probes and to requests."""

    is_live: bool
    is_ready: bool
    can_answer: bool
    next_states: frozenset[State]
    retry_after: int
    """Seconds after which a refused client should try again."""


def _rule(live: bool, ready: bool, *next_states: State, retry_after: int, answers: bool | None = None) -> StateRule:
    return StateRule(live, ready, ready if answers is None else answers, frozenset(next_states), retry_after)


_AFTER_PROVING = (State.READY, State.FOLLOWING, State.UNAVAILABLE, State.RESTARTING, State.FAILED, State.STOPPED)

RULES: Mapping[State, StateRule] = {
    State.PENDING: _rule(True, False, State.FETCHING, State.LOADING, State.FAILED, State.STOPPED, retry_after=5),
    State.FETCHING: _rule(True, False, State.LOADING, State.FAILED, State.STOPPED, retry_after=10),
    State.LOADING: _rule(True, False, State.PROVING, State.RESTARTING, State.FAILED, State.STOPPED, retry_after=5),
    State.PROVING: _rule(True, False, *_AFTER_PROVING, retry_after=1),
    State.READY: _rule(True, True, State.UNAVAILABLE, State.RESTARTING, State.DRAINING, State.FAILED, retry_after=1),
    # Ready, although another machine answers for it.
    State.FOLLOWING: _rule(True, True, State.RESTARTING, State.DRAINING, State.FAILED, retry_after=30, answers=False),
    # Live, because a restart does not bring back what is missing elsewhere.
    State.UNAVAILABLE: _rule(True, False, State.READY, State.RESTARTING, State.DRAINING, State.FAILED, retry_after=5),
    # Live, because it restarts by itself.
    State.RESTARTING: _rule(True, False, State.LOADING, State.FAILED, State.STOPPED, retry_after=5),
    State.DRAINING: _rule(True, False, State.UNLOADED, State.STOPPED, State.FAILED, retry_after=1),
    # Live, and not counted for readiness, because an operator wants it so.
    State.UNLOADED: _rule(True, False, State.PENDING, State.STOPPED, retry_after=30),
    State.FAILED: _rule(False, False, retry_after=30),
    State.STOPPED: _rule(False, False, retry_after=30),
}
