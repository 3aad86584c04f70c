"""The last line of a terminal, which the log is written above."""

from __future__ import annotations

import logging
import shutil
from typing import TextIO

# Return to the first column, and erase to the end of the line (ECMA-48, EL).
_CLEAR = "\r\x1b[K"


class StatusLineHandler(logging.StreamHandler[TextIO]):
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
        """Write text that is no event."""
        self.acquire()
        try:
            self._write(f"{_CLEAR if self._text else ''}{text}\n{self._text}")
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event; `handle` holds the lock."""
        if self._text:
            self.stream.write(_CLEAR)
        super().emit(record)
        if self._text:
            self._write(self._text)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.flush()


def status_line() -> StatusLineHandler | None:
    """The handler of this process's log; None where it is not written to a terminal."""
    return next((each for each in logging.getLogger().handlers if isinstance(each, StatusLineHandler)), None)
