"""The last line of a terminal, which the log is written above."""

from __future__ import annotations

import logging
import shutil
from typing import TextIO

# Return to the first column, and erase to the end of the line (ECMA-48, EL).
_CLEAR = "\r\x1b[K"


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes the log line by line."""

    def print(self, text: str) -> None:
        """Write a line."""
        self.acquire()
        try:
            self._write(f"{text}\n")
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record of a library."""
        try:
            self.print(self.format(record))
        except Exception:
            self.handleError(record)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.flush()


class StatusLineHandler(LineHandler):
    """Writes the log to a terminal, above a line that is written anew in its place."""

    _text = ""

    def show(self, text: str) -> None:
        """Replace the line; an empty text removes it. It is cut to the width of the terminal."""
        width = shutil.get_terminal_size().columns - 1
        shown = text if len(text) <= width else f"{text[: width - 1]}…"
        self.acquire()
        try:
            if shown != self._text:
                self._text = shown
                self._write(_CLEAR + shown)
        finally:
            self.release()

    def print(self, text: str) -> None:
        """Write a line above the last one."""
        self.acquire()
        try:
            self._write(f"{_CLEAR if self._text else ''}{text}\n{self._text}")
        finally:
            self.release()


def status_line() -> StatusLineHandler | None:
    """The handler of this process's log; None where it is not written to a terminal."""
    return next((each for each in logging.getLogger().handlers if isinstance(each, StatusLineHandler)), None)
