"""What code in this process writes to standard output and standard error, as events of the log."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

# Longer lines become several events.
_LONGEST_LINE_BYTES = 16 * 1024


@dataclass(slots=True)
class OutputCapture:
    """
    Where captured output goes: to `handler`, or as it is where that is None; `terminal` is the real standard error.
    """

    handler: logging.Handler | None = None
    terminal: TextIO | None = None
    streams: list[OutputStream] = field(default_factory=list)


# Standard output and standard error are the process's, and so is this.
capture = OutputCapture()


@contextmanager
def captured_output() -> Iterator[None]:
    """
    Make events of what code writes to `sys.stdout` and `sys.stderr`, where the log is JSON; for after `logs.configure`.
    """
    stdout, stderr = sys.stdout, sys.stderr
    capture.terminal = stderr
    capture.streams = [OutputStream(stdout, "stdout", logging.INFO), OutputStream(stderr, "stderr", logging.WARNING)]
    sys.stdout, sys.stderr = capture.streams
    try:
        yield
    finally:
        for stream in capture.streams:
            stream.end_lines()
        sys.stdout, sys.stderr = stdout, stderr
        capture.streams, capture.terminal = [], None


def end_line() -> None:
    """Write what this thread has begun a line with, because the code that wrote it is done."""
    for stream in capture.streams:
        stream.end_line()


class OutputStream(io.TextIOBase):
    """A text stream whose lines become events `output.written`.

    Each thread has a line of its own, so that lines stay whole and have the id of the request that wrote them.
    `flush` does not end a line: progress bars flush many times a second.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, original: TextIO, name: str, level: int) -> None:
        self.buffer = _Bytes(self)
        self._original = original
        self._stream_name = name
        self._level = level
        self._begun: dict[int, bytearray] = {}
        self._is_writing = threading.local()

    def write(self, text: str, /) -> int:
        self.write_bytes(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Take a part of a line, or many lines."""
        # An event that cannot be written makes `logging` write a traceback here, which must not be an event again.
        if capture.handler is None or getattr(self._is_writing, "now", False):
            self._original.write(data.decode("utf-8", "backslashreplace"))
            return
        begun = self._begun.setdefault(threading.get_ident(), bytearray())
        *lines, rest = data.split(b"\n")
        for line in lines:
            begun += line
            self.end_line()
            begun = self._begun.setdefault(threading.get_ident(), bytearray())
        begun += rest
        if len(begun) > _LONGEST_LINE_BYTES:
            self.end_line()

    def end_line(self) -> None:
        """Write what this thread has begun a line with."""
        self._end(self._begun.pop(threading.get_ident(), None))

    def end_lines(self) -> None:
        """The same for all threads."""
        while self._begun:
            self._end(self._begun.popitem()[1])

    def _end(self, line: bytearray | None) -> None:
        while line:
            end = len(line)
            if end > _LONGEST_LINE_BYTES:
                end = _LONGEST_LINE_BYTES
                # Back to where a character of UTF-8 begins.
                while end > _LONGEST_LINE_BYTES - 4 and line[end] & 0xC0 == 0x80:
                    end -= 1
            self._emit(line[:end].decode("utf-8", "backslashreplace"))
            del line[:end]

    def _emit(self, line: str) -> None:
        # A progress bar goes back to the line's beginning; what it wrote last is what a terminal shows.
        text = line.rstrip().rpartition("\r")[2]
        logger, handler = logging.getLogger("appliance.output"), capture.handler
        if not text or handler is None or not logger.isEnabledFor(self._level):
            return
        extra = {"stream": self._stream_name, "text": text}
        record = logger.makeRecord(logger.name, self._level, "", 0, "output.written", (), None, extra=extra)
        self._is_writing.now = True
        try:
            # Not through the loggers, where a handler of the user's may write here again.
            handler.handle(record)
        finally:
            self._is_writing.now = False

    def flush(self) -> None:
        self._original.flush()

    def fileno(self) -> int:
        return self._original.fileno()

    def isatty(self) -> bool:
        return capture.handler is None and self._original.isatty()

    def writable(self) -> bool:
        return True

    def reconfigure(self, **_: object) -> None:
        """Do nothing: events are UTF-8, and a line is written when it ends."""

    def close(self) -> None:
        """Do nothing: standard output outlives the code that closes it."""


class _Bytes(io.BufferedIOBase):
    """The `buffer` of a captured stream."""

    def __init__(self, text: OutputStream) -> None:
        self._text = text

    def write(self, data: Any, /) -> int:  # Any: whatever has bytes in it
        raw = bytes(data)
        self._text.write_bytes(raw)
        return len(raw)

    def flush(self) -> None:
        self._text.flush()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing, as the stream itself."""
