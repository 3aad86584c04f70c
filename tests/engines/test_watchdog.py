"""The watchdog of an engine, by a clock of the test's."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.errors import EngineDeadError
from appliance.engines.vllm.watchdog import StallWatchdog


class _Watched:
    """A watchdog of ten seconds that looks every half second, as the lifecycle does."""

    def __init__(self, heartbeat_file: Path | None = None) -> None:
        self.now = 0.0
        self.stall = StallWatchdog(10, lambda: self.now, heartbeat_file)

    def passes(self, seconds: float, unfinished: int, step_every: float | None = None) -> None:
        """Time with so many requests, and a step every so often."""
        stepped = self.now
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            if step_every is not None and self.now - stepped >= step_every:
                stepped = self.now
                self.stall.record_step()
            self.stall.check(unfinished)


def test_work_without_a_step_is_a_stall() -> None:
    """After the time that is set, and not before."""
    watched = _Watched()
    watched.passes(9.5, unfinished=3)

    with pytest.raises(EngineDeadError, match="the engine stalled: 3 requests and no step for 10 seconds"):
        watched.passes(0.5, unfinished=3)


def test_ten_minutes_of_saturation_are_no_stall() -> None:
    """A queue of any length waits for an engine that makes its steps, be they slow ones."""
    watched = _Watched()
    watched.passes(600, unfinished=1000, step_every=9)

    with pytest.raises(EngineDeadError):
        watched.passes(11, unfinished=1000)


def test_an_engine_without_work_does_not_stall() -> None:
    """An hour without a request is no fault, and the first one after it has all its time."""
    watched = _Watched()
    watched.passes(3600, unfinished=0)
    watched.passes(9.5, unfinished=1)

    with pytest.raises(EngineDeadError):
        watched.passes(0.5, unfinished=1)


def test_clients_that_give_up_do_not_hide_a_stall() -> None:
    """Each request lasts four seconds, and the next one comes a second later: the engine has work all the time."""
    watched = _Watched()

    for _ in range(2):
        watched.passes(4, unfinished=1)
        watched.passes(1, unfinished=0)

    with pytest.raises(EngineDeadError):
        watched.passes(2, unfinished=1)


def test_time_that_nobody_watched_is_not_counted() -> None:
    """A container that was paused for a minute goes on as it was."""
    watched = _Watched()
    watched.passes(5, unfinished=1)
    watched.now += 60
    watched.passes(1, unfinished=1, step_every=0.5)

    watched.passes(9.5, unfinished=1)
    with pytest.raises(EngineDeadError):
        watched.passes(0.5, unfinished=1)


def test_steps_that_another_front_end_sees_are_progress(tmp_path: Path) -> None:
    """A request that waits behind those of others hears of no step; both stall when the engine does."""
    file = tmp_path / "pulse"
    file.touch()
    busy, waiting = _Watched(file), _Watched(file)
    for _ in range(120):
        busy.passes(1, unfinished=5, step_every=1)
        waiting.passes(1, unfinished=1)

    busy.passes(9.5, unfinished=5)
    waiting.passes(8.5, unfinished=1)
    for each in (busy, waiting):
        with pytest.raises(EngineDeadError):
            each.passes(2, unfinished=1)
