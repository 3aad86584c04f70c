"""Watchdog of the event loop: a thread that logs which function blocks it."""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path

import structlog

import appliance

log: structlog.stdlib.BoundLogger = structlog.get_logger()

UNREADY_SECONDS = 5.0
"""How long an event loop may be blocked before it is logged, and before the process is not ready."""

_HEARTBEAT_SECONDS = 0.25

# Longer intervals between two checks are not counted: the process itself was suspended.
_MAX_INTERVAL_SECONDS = 1.0

# The innermost frames; the outermost are always the same.
_MAX_FRAMES = 25

# Code of Python, of installed packages and of this one, as opposed to a user's.
_LIBRARY_PATHS = (
    "<frozen",
    str(Path(appliance.__file__).parent),
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)


class Watchdog:
    """Watches the event loop in which it is created.

    The loop increments a heartbeat. If that stops, a thread logs the stack of the loop's thread, which names the
    blocking function.
    """

    def __init__(self, stall_seconds: float) -> None:
        """After `stall_seconds`, liveness reports a blocked loop too."""
        self._stages = sorted({min(UNREADY_SECONDS, stall_seconds), stall_seconds})
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._heartbeats = 0
        self._is_closed = threading.Event()
        self._timer = self._loop.call_soon(self._heartbeat)
        threading.Thread(target=self._watch, name="event-loop-watchdog", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._is_closed.set()
        self._timer.cancel()

    def _heartbeat(self) -> None:
        self._heartbeats += 1
        self._timer = self._loop.call_later(_HEARTBEAT_SECONDS, self._heartbeat)

    def _watch(self) -> None:
        seen, blocked_seconds, logged = self._heartbeats, 0.0, 0
        looked = time.monotonic()
        while not self._is_closed.wait(_HEARTBEAT_SECONDS):
            now = time.monotonic()
            blocked_seconds += min(now - looked, _MAX_INTERVAL_SECONDS)
            looked = now
            if seen != self._heartbeats:
                if logged:
                    log.warning("event_loop.recovered", blocked_seconds=round(blocked_seconds, 1))
                seen, blocked_seconds, logged = self._heartbeats, 0.0, 0
            elif logged < len(self._stages) and blocked_seconds >= self._stages[logged]:
                logged += 1
                write = log.error if blocked_seconds >= self._stall_seconds else log.warning
                frames, function = frames_of(self._watched)
                write("event_loop.blocked", blocked_seconds=round(blocked_seconds, 1), function=function, frames=frames)


def frames_of(thread: int) -> tuple[list[str], str | None]:
    """Return the stack of a thread, the innermost call last, and which call is the one to change.

    Each is function, file, line and source. The one to change is the innermost of the user's code, if there is one.
    """
    frame = sys._current_frames().get(thread)
    stack = [] if frame is None else traceback.extract_stack(frame)[-_MAX_FRAMES:]
    frames = [f"{each.name} ({each.filename}:{each.lineno}): {each.line}" for each in stack]
    own = [text for text, each in zip(frames, stack, strict=True) if not each.filename.startswith(_LIBRARY_PATHS)]
    return frames, next(reversed(own or frames), None)
