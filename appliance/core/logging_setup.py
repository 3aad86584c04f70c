"""The log: structlog and the standard library's loggers in one stream, set up once."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor

from appliance.core.log_output import capture

# How a child process learns to write like its parent.
_CHILD = "APPLIANCE_CHILD_LOG"

# A shorter secret would blot out ordinary words and numbers wherever they stand.
_SHORTEST_REDACTED = 6

# On a terminal people look for what we say: of these only errors. All of it is there with level debug, and as JSON.
_BACKGROUND = frozenset({"vllm", "_granian", "py", "filelock"})


def _without_foreign_time(_logger: object, _name: str, event: EventDict) -> EventDict:
    # Ray gives one to every record of a process that imports it, and vLLM imports it where it is installed.
    event.pop("_ray_timestamp_ns", None)
    return event


_BEFORE: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.stdlib.ExtraAdder(),
    _without_foreign_time,
]


def configure(
    format: Literal["auto", "json", "console"],  # noqa: A002 - the word of the config
    level: str,
    secrets: Collection[str] = (),
) -> None:
    """Send every event of this process to standard error in one format.

    `secrets` are texts that come out as ``***`` wherever they stand.
    Child processes that call `join` from now on write the same way. May be called again, for another config.
    """
    stderr = capture.terminal or sys.stderr
    console = format == "console" or (format == "auto" and stderr.isatty())
    os.environ[_CHILD] = json.dumps({"format": "console" if console else "json", "level": level})
    renderer = _console(has_colors=stderr.isatty()) if console else _json()
    stamper = structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console)
    # Nothing here may depend on the config: a logger keeps what it was first used with.
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_BEFORE, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stderr)
    if console and level != "debug":
        handler.addFilter(_is_foreground)
    handler.setFormatter(_Redacted(secrets, [stamper, *renderer]))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    # On a console people read it as it is, and debuggers and progress bars need that.
    capture.handler = None if console else handler


def join() -> None:
    """Write like the parent process, where that has called `configure`."""
    if _CHILD in os.environ:
        configure(**json.loads(os.environ[_CHILD]))


def _json() -> list[Processor]:
    # Without the locals of each frame: prompts and secrets are among them.
    tracebacks = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    return [tracebacks, structlog.processors.JSONRenderer()]


def _console(*, has_colors: bool) -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=has_colors,
        sort_keys=False,
        pad_event_to=16,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [_printable, renderer]


def _printable(_logger: object, _name: str, event: EventDict) -> EventDict:
    # A client's text, such as a path, must not begin a line of its own or make a terminal act.
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            lines = "\n\t" if key == "event" else ""
            event[key] = "".join(char if char.isprintable() or char in lines else ascii(char)[1:-1] for char in value)
    return event


def _is_foreground(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.split(".")[0] not in _BACKGROUND


class _Redacted(structlog.stdlib.ProcessorFormatter):
    """Replaces secrets in the finished line, wherever in it they stand."""

    def __init__(self, secrets: Collection[str], renderer: list[Processor]) -> None:
        without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        super().__init__(foreign_pre_chain=_BEFORE, processors=[without_meta, *renderer])
        long = {secret for secret in secrets if len(secret) >= _SHORTEST_REDACTED}
        written = long | {json.dumps(secret)[1:-1] for secret in long}
        # The longest first: one secret may be a part of another.
        self._hidden = sorted(written, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for secret in self._hidden:
            line = line.replace(secret, "***")
        return line
