"""The table of states, row by row."""

from __future__ import annotations

import pytest

from appliance.models.state import RULES, State

S = State
ENDS = {S.FAILED, S.STOPPED}
DIES = {S.FAILED, S.RESTARTING}

# state, liveness status, readiness status, what it leaves to: the design's table, written a second time on purpose.
TABLE = [
    (S.PENDING, 200, 503, {S.FETCHING, S.LOADING, *ENDS}),
    (S.FETCHING, 200, 503, {S.LOADING, *ENDS}),
    (S.LOADING, 200, 503, {S.PROVING, S.RESTARTING, *ENDS}),
    (S.PROVING, 200, 503, {S.READY, S.FOLLOWING, S.UNAVAILABLE, S.RESTARTING, *ENDS}),
    (S.READY, 200, 200, {S.UNAVAILABLE, S.DRAINING, *DIES}),
    (S.FOLLOWING, 200, 200, {S.DRAINING, *DIES}),
    (S.UNAVAILABLE, 200, 503, {S.READY, S.DRAINING, *DIES}),
    (S.RESTARTING, 200, 503, {S.LOADING, *ENDS}),
    (S.DRAINING, 200, 503, {S.UNLOADED, S.STOPPED, S.FAILED}),
    (S.UNLOADED, 200, 503, {S.PENDING, S.STOPPED}),
    (S.FAILED, 503, 503, set()),
    (S.STOPPED, 503, 503, set()),
]


@pytest.mark.parametrize(("state", "live", "ready", "next_states"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_the_rules_are_those_of_the_table(state: State, live: int, ready: int, next_states: set[State]) -> None:
    """What probes answer in a state, and which states can follow it."""
    rule = RULES[state]

    assert rule.is_live == (live == 200)
    assert rule.is_ready == (ready == 200)
    assert rule.next_states == next_states


def test_every_state_has_a_row() -> None:
    """No state is without a rule."""
    assert set(RULES) == set(State) == {row[0] for row in TABLE}
