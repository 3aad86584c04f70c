"""What the last load of a model was spent on: the one source of the log, the probes and the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from appliance.models.state import State

_LOADING = frozenset({State.PENDING, State.FETCHING, State.LOADING, State.PROVING})
"""
The phases of a load: the states on the way to the first answer.
"""

# A load begins in them, the first one and each that follows.
_BEGINNINGS = frozenset({State.PENDING, State.RESTARTING})


class LoadTimings:
    """The seconds that a model was in each state of its last load."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[State, float] = {}
        self._state = State.PENDING
        self._entered = clock()

    def enter(self, state: State) -> None:
        """The model is in a state from now on."""
        self._seconds = {} if state in _BEGINNINGS else {**self._seconds, **self._current()}
        self._state, self._entered = state, self._clock()

    def seconds(self) -> Mapping[State, float]:
        """By phase in the order of the load, the one under way included."""
        known = {**self._seconds, **self._current()}
        return {state: seconds for state, seconds in known.items() if state in _LOADING}

    def _current(self) -> Mapping[State, float]:
        return {self._state: self._clock() - self._entered}
