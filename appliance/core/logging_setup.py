"""The log: structlog, the standard library's loggers and the output of code in one stream."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from appliance.core.request_context import current_context
from appliance.core.status_line import LineHandler, StatusLineHandler

# Tells a child process the format of its parent.
_CHILD = "APPLIANCE_CHILD_LOG"

# Shorter secrets are ordinary words and numbers.
_SHORTEST_REDACTED = 6

# Loggers of which a terminal shows only errors, unless the level is debug.
_BACKGROUND = frozenset({"vllm", "_granian", "py", "filelock"})


def _without_foreign_time(_logger: object, _name: str, event: EventDict) -> EventDict:
    # Ray adds one to every record of a process that imports it, and vLLM imports it where it is installed.
    event.pop("_ray_timestamp_ns", None)
    return event


def _add_request(_logger: object, _name: str, event: EventDict) -> EventDict:
    # Bound as structlog's context variables, the two would cost each request as much as its whole event.
    if (context := current_context()) is not None:
        event.setdefault("request_id", context.id)
        if context.trace is not None:
            event.setdefault("trace_id", context.trace)
    return event


class _EventWriter:
    """The last step of our events: a record of the standard library would take longer than all the others.

    `configure` sets where they go, because a logger caches the steps that it was first used with.
    """

    handler: LineHandler
    formatter: _Redacted

    def __call__(self, _logger: object, _name: str, event: EventDict) -> EventDict:
        try:
            self.handler.print(self.formatter.render(event))
        except Exception:
            # As the standard library does: a full disk must not fail a request.
            self.handler.handleError(logging.makeLogRecord({"msg": event}))
        raise structlog.DropEvent


_write = _EventWriter()

_BEFORE: list[Processor] = [
    _add_request,
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
]

# What only the records of libraries have.
_OF_RECORDS: list[Processor] = [
    structlog.stdlib.ExtraAdder(),
    _without_foreign_time,
]


def configure(
    format: Literal["auto", "json", "console"],  # noqa: A002 - the word of the config
    level: str,
    secrets: Collection[str] = (),
) -> None:
    """Write every event of this process to standard error in one format, with ``***`` for the secrets.

    Child processes that call `join` later write the same way. May be called again, for another config.
    """
    stderr = _capture.terminal or sys.stderr
    console = format == "console" or (format == "auto" and stderr.isatty())
    os.environ[_CHILD] = json.dumps({"format": "console" if console else "json", "level": level})
    stamper = structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console)
    # Nothing here may depend on the config: a logger caches what it was first used with.
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_BEFORE, _write],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    is_terminal = stderr.isatty() and os.environ.get("TERM") != "dumb"
    handler = StatusLineHandler(stderr) if console and is_terminal else LineHandler(stderr)
    if level != "debug":
        handler.addFilter(_is_foreground if console else _is_wanted)
    # https://no-color.org
    has_colors = is_terminal and not os.environ.get("NO_COLOR")
    formatter = _Redacted(secrets, [stamper, *_renderer(is_console=console, has_colors=has_colors)])
    handler.setFormatter(formatter)
    _write.handler, _write.formatter = handler, formatter
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    # Debuggers and progress bars need the terminal as it is.
    _capture.handler = None if console else handler


def join() -> None:
    """Write like the parent process, if it has called `configure`."""
    if _CHILD in os.environ:
        configure(**json.loads(os.environ[_CHILD]))


def _renderer(*, is_console: bool, has_colors: bool) -> list[Processor]:
    if is_console:
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(
            colors=has_colors, sort_keys=False, pad_event_to=16, exception_formatter=plain
        )
        return [_without_own_name, _printable, console]
    # Without the locals of each frame: prompts and secrets are among them.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer(_to_json)]


def _to_json(event: object, default: Callable[[object], object]) -> str:
    return _json_encoder(default).encode(event)


@cache
def _json_encoder(default: Callable[[object], object]) -> json.JSONEncoder:
    # `json.dumps` makes one for each event.
    return json.JSONEncoder(default=default)


def _printable(_logger: object, _name: str, event: EventDict) -> EventDict:
    # A client's text, such as a path, must not start a line of its own or control the terminal.
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            lines = "\n\t" if key == "event" else ""
            event[key] = "".join(char if char.isprintable() or char in lines else ascii(char)[1:-1] for char in value)
    return event


def _is_wanted(record: logging.LogRecord) -> bool:
    # Granian warns of the server that we chose, at every start.
    return record.levelno >= logging.ERROR or not record.name.startswith("_granian")


def _without_own_name(_logger: object, _name: str, event: EventDict) -> EventDict:
    # An event of ours has a name that says where it is from.
    if str(event.get("logger")).startswith("appliance"):
        del event["logger"]
    return event


def _is_foreground(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.split(".")[0] not in _BACKGROUND


class _Redacted(structlog.stdlib.ProcessorFormatter):
    """Replaces secrets in the formatted line."""

    def __init__(self, secrets: Collection[str], renderer: list[Processor]) -> None:
        without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        super().__init__(foreign_pre_chain=[*_BEFORE, *_OF_RECORDS], processors=[without_meta, *renderer])
        self._renderer = renderer
        long = {secret for secret in secrets if len(secret) >= _SHORTEST_REDACTED}
        written = long | {json.dumps(secret)[1:-1] for secret in long}
        # The longest first: one secret may be a part of another.
        self._hidden = sorted(written, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))

    def render(self, event: EventDict) -> str:
        """Return the line of an event of ours."""
        line: Any = event  # Any: processors return an event, the last one a text
        for processor in self._renderer:
            line = processor(None, "", line)
        return self._redact(line)

    def _redact(self, line: str) -> str:
        for secret in self._hidden:
            line = line.replace(secret, "***")
        return line


# Longer lines of output become several events.
_LONGEST_LINE_BYTES = 16 * 1024


@dataclass(slots=True)
class OutputCapture:
    """The captured standard output and standard error of this process."""

    handler: logging.Handler | None = None
    """Where its lines go as events; None writes them as they are."""

    terminal: TextIO | None = None
    """The real standard error."""

    outputs: Sequence[_Output] = ()


# Standard output and standard error exist once in a process, and so does this.
_capture = OutputCapture()


@contextmanager
def captured_output() -> Iterator[None]:
    """Turn what code writes to `sys.stdout` and `sys.stderr` into events, where the log is JSON; `configure` first."""
    stdout, stderr = sys.stdout, sys.stderr
    _capture.terminal = stderr
    _capture.outputs = _Output(stdout, "stdout", logging.INFO), _Output(stderr, "stderr", logging.WARNING)
    sys.stdout, sys.stderr = map(_Text, _capture.outputs)
    try:
        yield
    finally:
        for output in _capture.outputs:
            output.end_lines()
        sys.stdout, sys.stderr = stdout, stderr
        _capture.outputs, _capture.terminal = (), None


def end_line() -> None:
    """Write the line that this thread has begun, because the code that wrote it is done."""
    for output in _capture.outputs:
        output.end_line()


class _Text(io.TextIOWrapper):
    def __init__(self, output: _Output) -> None:
        super().__init__(output, "utf-8", "backslashreplace", write_through=True)

    def reconfigure(self, **_: object) -> None:
        """Do nothing: events are UTF-8, and a line is written when it ends."""


class _Output(io.BufferedIOBase):
    """Bytes whose lines become events `output.written`.

    Each thread has a line of its own, so that lines stay whole and have the id of their request.
    `flush` does not end a line: progress bars flush many times a second.
    """

    def __init__(self, original: TextIO, name: str, level: int) -> None:
        self._original = original
        self.name = name
        self._level = level
        self._begun: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._is_writing = threading.local()

    def write(self, data: Any, /) -> int:  # Any: whatever has bytes in it
        raw = bytes(data)
        # An event that cannot be written makes `logging` write a traceback here, which must not be an event again.
        if _capture.handler is None or getattr(self._is_writing, "now", False):
            self._original.write(raw.decode("utf-8", "backslashreplace"))
            return len(raw)
        thread = threading.get_ident()
        *lines, rest = raw.split(b"\n")
        for line in lines:
            self._begun[thread] += line
            self.end_line()
        self._begun[thread] += rest
        if len(self._begun[thread]) > _LONGEST_LINE_BYTES:
            self.end_line()
        return len(raw)

    def end_line(self) -> None:
        self._end(self._begun.pop(threading.get_ident(), None))

    def end_lines(self) -> None:
        while self._begun:
            self._end(self._begun.popitem()[1])

    def _end(self, line: bytearray | None) -> None:
        while line:
            end = len(line)
            if end > _LONGEST_LINE_BYTES:
                end = _LONGEST_LINE_BYTES
                # Back to the first byte of a UTF-8 character.
                while end > _LONGEST_LINE_BYTES - 4 and line[end] & 0xC0 == 0x80:
                    end -= 1
            self._emit(line[:end].decode("utf-8", "backslashreplace"))
            del line[:end]

    def _emit(self, line: str) -> None:
        # A progress bar returns to the start of the line; a terminal shows what it wrote last.
        text = line.rstrip().rpartition("\r")[2]
        logger, handler = logging.getLogger("appliance.output"), _capture.handler
        if not text or handler is None or not logger.isEnabledFor(self._level):
            return
        extra = {"stream": self.name, "text": text}
        record = logger.makeRecord(logger.name, self._level, "", 0, "output.written", (), None, extra=extra)
        self._is_writing.now = True
        try:
            # Not through the loggers, where a handler of user code may write here again.
            handler.handle(record)
        finally:
            self._is_writing.now = False

    def flush(self) -> None:
        self._original.flush()

    def fileno(self) -> int:
        return self._original.fileno()

    def isatty(self) -> bool:
        return _capture.handler is None and self._original.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: standard output outlives the code that closes it."""
