"""The states of a model's life as one table: the document, the code and the test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a model stands; `StateRule` says what each state means."""

    PENDING = "pending"
    FETCHING = "fetching"
    LOADING = "loading"
    PROVING = "proving"
    READY = "ready"
    FOLLOWING = "following"
    UNAVAILABLE = "unavailable"
    RESTARTING = "restarting"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class StateRule:
    """What a state means to a probe, whether it answers calls, where it leaves to, and the wait in seconds a refused
    caller is told.
    """

    is_live: bool
    is_ready: bool
    can_answer: bool
    next_states: frozenset[State]
    retry_after: int


def _rule(live: bool, ready: bool, *next_states: State, retry_after: int, answers: bool | None = None) -> StateRule:
    return StateRule(live, ready, ready if answers is None else answers, frozenset(next_states), retry_after)


RULES: Mapping[State, StateRule] = {
    State.PENDING: _rule(True, False, State.FETCHING, State.LOADING, State.FAILED, State.STOPPED, retry_after=5),
    State.FETCHING: _rule(True, False, State.LOADING, State.FAILED, State.STOPPED, retry_after=10),
    State.LOADING: _rule(True, False, State.PROVING, State.RESTARTING, State.FAILED, State.STOPPED, retry_after=5),
    State.PROVING: _rule(
        True,
        False,
        State.READY,
        State.FOLLOWING,
        State.UNAVAILABLE,
        State.RESTARTING,
        State.FAILED,
        State.STOPPED,
        retry_after=1,
    ),
    State.READY: _rule(True, True, State.UNAVAILABLE, State.RESTARTING, State.DRAINING, State.FAILED, retry_after=1),
    # Ready: it does its part; another server answers.
    State.FOLLOWING: _rule(True, True, State.RESTARTING, State.DRAINING, State.FAILED, retry_after=30, answers=False),
    # Live: what is missing is elsewhere, and a restart would not bring it back.
    State.UNAVAILABLE: _rule(True, False, State.READY, State.RESTARTING, State.DRAINING, State.FAILED, retry_after=5),
    # Live: the restart is ours.
    State.RESTARTING: _rule(True, False, State.LOADING, State.FAILED, State.STOPPED, retry_after=5),
    State.DRAINING: _rule(True, False, State.UNLOADED, State.STOPPED, State.FAILED, retry_after=1),
    # Live, and nobody's readiness: an operator wants it so.
    State.UNLOADED: _rule(True, False, State.PENDING, State.STOPPED, retry_after=30),
    State.FAILED: _rule(False, False, retry_after=30),
    State.STOPPED: _rule(False, False, retry_after=30),
}
