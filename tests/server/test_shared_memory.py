"""The memory that workers share."""

from __future__ import annotations

import os
import signal
import time

import pytest

from appliance.server.shared_memory import SharedSlots


def test_each_slot_holds_what_was_said_last() -> None:
    """Nothing before the first word; then the last word, whatever the length of those before."""
    slots = SharedSlots(2)
    assert slots.read(1) is None
    for said in (b"a" * 1000, b"", b"last"):
        slots.write(1, said)

        assert slots.read(1) == said
    assert slots.read(0) is None


def test_too_much_is_refused_and_leaves_what_was() -> None:
    """A slot has an end, and nobody writes beyond it."""
    slots = SharedSlots(2)
    slots.write(0, b"good")

    with pytest.raises(ValueError, match="do not fit"):
        slots.write(0, bytes(16 << 20))
    assert slots.read(0) == b"good"
    assert slots.read(1) is None


def test_a_reader_never_sees_half_of_a_word() -> None:
    """While another process writes without a pause, and when it is killed in the middle, what is read was said."""
    slots = SharedSlots(1)
    writer = os.fork()
    if writer == 0:
        for number in range(10**9):
            slots.write(0, bytes([number % 256]) * (1 + number % 5000))
    try:
        deadline = time.monotonic() + 1
        seen = set()
        while time.monotonic() < deadline:
            said = slots.read(0)
            assert said is None or len(set(said)) == 1, said
            seen.add(said)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)

    assert len(seen) > 10
    last = slots.read(0)
    assert last is not None
    assert len(set(last)) == 1
