"""What a start is spent on adds up: each second belongs to one part."""

from __future__ import annotations

import pytest

from appliance.engines.vllm.fork_server import StartupTimings


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_heard_within_a_part_is_no_second_time_in_it() -> None:
    """The engine core tells of its own parts while this process waits for all of it."""
    clock = Clock()
    parts = StartupTimings(clock)
    with parts.measure("engine"):
        clock.now += 10
        parts.add("weights", 6)
        parts.add("kv_cache", 1)

    assert parts.seconds == {"weights": 6, "kv_cache": 1, "engine": 3}


def test_a_part_that_breaks_counts_for_as_long_as_it_lasted() -> None:
    """A load that fails after minutes says where they went."""
    clock = Clock()
    parts = StartupTimings(clock)

    def broken() -> None:
        with parts.measure("config"):
            clock.now += 2
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        broken()

    assert parts.seconds == {"config": 2}
