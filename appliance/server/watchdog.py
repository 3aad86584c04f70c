"""Watchdog of the event loop: logs what blocks it, from a thread of its own."""

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

_BEAT_SECONDS = 0.25

# Time between two looks counts up to here: a process that was itself suspended has seen nothing of it.
_MOST_BETWEEN_SECONDS = 1.0

# The innermost frames, which are the user's or a library's; the outermost are always the same.
_MOST_FRAMES = 25

# Code of Python, of installed packages, and of this one.
_OTHERS = (
    "<frozen",
    str(Path(appliance.__file__).parent),
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)


class Watchdog:
    """Watches the event loop that it is made in.

    The loop sets a heartbeat; a thread looks whether it moves, and logs the stack of the loop's thread when it does
    not, so that a blocking function is named.
    """

    def __init__(self, stall_seconds: float) -> None:
        """`stall_seconds` is when liveness reports a blocked loop too."""
        self._stages = sorted({min(UNREADY_SECONDS, stall_seconds), stall_seconds})
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._beats = 0
        self._is_closed = threading.Event()
        self._timer = self._loop.call_soon(self._beat)
        threading.Thread(target=self._watch, name="event-loop-watchdog", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._is_closed.set()
        self._timer.cancel()

    def _beat(self) -> None:
        self._beats += 1
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    def _watch(self) -> None:
        seen, blocked_seconds, logged = self._beats, 0.0, 0
        looked = time.monotonic()
        while not self._is_closed.wait(_BEAT_SECONDS):
            now = time.monotonic()
            blocked_seconds += min(now - looked, _MOST_BETWEEN_SECONDS)
            looked = now
            if seen != self._beats:
                if logged:
                    log.warning("event_loop.recovered", blocked_seconds=round(blocked_seconds, 1))
                seen, blocked_seconds, logged = self._beats, 0.0, 0
            elif logged < len(self._stages) and blocked_seconds >= self._stages[logged]:
                self._tell(blocked_seconds)
                logged += 1

    def _tell(self, blocked_seconds: float) -> None:
        write = log.error if blocked_seconds >= self._stall_seconds else log.warning
        stack = _stack(self._watched)
        # Users look for a function of theirs, and a library's is where they called it.
        own = [each for each in stack if not each.filename.startswith(_OTHERS)]
        write(
            "event_loop.blocked",
            blocked_seconds=round(blocked_seconds, 1),
            function=_shown((own or stack)[-1]) if stack else None,
            frames=[_shown(each) for each in stack],
        )


def frames_of(thread: int) -> list[str]:
    """What a thread is doing now, the innermost call last: each as its function, file, line and text."""
    return [_shown(each) for each in _stack(thread)]


def _stack(thread: int) -> list[traceback.FrameSummary]:
    frame = sys._current_frames().get(thread)
    return traceback.extract_stack(frame)[-_MOST_FRAMES:] if frame is not None else []


def _shown(frame: traceback.FrameSummary) -> str:
    return f"{frame.name} ({frame.filename}:{frame.lineno}): {frame.line}"
