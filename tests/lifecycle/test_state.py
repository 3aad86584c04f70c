"""
The table of states, row by row.
"""

from __future__ import annotations

import pytest

from appliance.lifecycle import RULES, State

S = State
LOADS = {S.FAILED, S.STOPPED}

# state, liveness status, readiness status, what it leaves to: the design's table, written a second time on purpose.
TABLE = [
    (S.PENDING, 200, 503, {S.FETCHING, S.LOADING, *LOADS}),
    (S.FETCHING, 200, 503, {S.LOADING, *LOADS}),
    (S.LOADING, 200, 503, {S.PROVING, *LOADS}),
    (S.PROVING, 200, 503, {S.READY, S.UNAVAILABLE, *LOADS}),
    (S.READY, 200, 200, {S.UNAVAILABLE, S.DRAINING, S.FAILED}),
    (S.UNAVAILABLE, 200, 503, {S.READY, S.DRAINING, S.FAILED}),
    (S.DRAINING, 200, 503, {S.UNLOADED, S.STOPPED, S.FAILED}),
    (S.UNLOADED, 200, 503, {S.PENDING, S.STOPPED}),
    (S.FAILED, 503, 503, set()),
    (S.STOPPED, 503, 503, set()),
]


@pytest.mark.parametrize(("state", "live", "ready", "leaves_to"), TABLE, ids=lambda each: str(each))
def test_a_state_is_what_the_table_says(state: State, live: int, ready: int, leaves_to: set[State]) -> None:
    """
    What probes answer in a state, and which states can follow it.
    """
    rule = RULES[state]

    assert rule.is_live == (live == 200)
    assert rule.is_ready == (ready == 200)
    assert rule.leaves_to == leaves_to


def test_every_state_has_a_row() -> None:
    """
    No state is left without a rule.
    """
    assert set(RULES) == set(State) == {row[0] for row in TABLE}
