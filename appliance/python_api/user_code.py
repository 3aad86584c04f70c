"""
Exceptions of users' code: logged with the user's own frames, and raised again as one error that protocols can render.

Users raise anything, `SystemExit`, `KeyboardInterrupt` and `CancelledError` among it, which would end more than the
request if they went on as they are.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

import appliance
from appliance.core.errors import ApplianceError
from appliance.core.log_output import end_line

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_OURS = str(Path(appliance.__file__).parent)

_LONGEST_TEXT = 2000
_MOST_FRAMES = 20
_MOST_CAUSES = 5


class UserCodeError(ApplianceError):
    """Code of a model written in Python raised an exception that is none of ours."""

    def __init__(self, code: str, reason: str, frames: Sequence[str]) -> None:
        super().__init__(f"{code} raised {reason}")
        self.frames = frames
        self._code, self._reason = code, reason

    def log(self) -> None:
        """Log it with the user's frames."""
        log.error("model.code_failed", code=self._code, reason=self._reason, frames=self.frames)


@contextmanager
def user_code(what: str, *, is_logged: bool = True) -> Iterator[None]:
    """Run code of a user, which `what` names in messages; what it raises is logged, or left to the caller to log.

    What users raise on purpose passes: our own errors, and `NotImplementedError` for what a model cannot do.

    Raises:
        UserCodeError: it raised anything else.
    """
    task = _current_task()
    try:
        yield
    except (ApplianceError, NotImplementedError):
        raise
    except (asyncio.CancelledError, GeneratorExit) as error:
        # Somebody ends our own work, unless nobody asked for that.
        is_ended = task is None or task is not _current_task() or bool(task.cancelling())
        if is_ended:
            raise
        raise _told(what, error, is_logged=is_logged) from error
    except BaseException as error:
        raise _told(what, error, is_logged=is_logged) from error
    finally:
        end_line()


def name_of(code: Any) -> str:  # Any: a method, a generator, or whatever a user has in its place
    """A piece of a user's code as messages name it, such as ``Iris.predict``."""
    name = str(getattr(code, "__name__", type(code).__name__))
    owner = getattr(code, "__self__", None)
    return name if owner is None else f"{type(owner).__name__}.{name}"


def reason_of(error: BaseException) -> str:
    """What an exception says: its type and text, those of its group, and those of its causes."""
    return ", caused by ".join(map(_text, _chain(error)))


def _told(what: str, error: BaseException, *, is_logged: bool) -> UserCodeError:
    told = UserCodeError(what, reason_of(error), _frames(error))
    if is_logged:
        told.log()
    return told


def _text(error: BaseException) -> str:
    try:
        text = str(error)[:_LONGEST_TEXT]
    except BaseException as other:
        text = f"its __str__ raised {type(other).__name__}"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        said += f" ({'; '.join(map(_text, error.exceptions[:_MOST_CAUSES]))})"
    return said


def _frames(error: BaseException) -> list[str]:
    """The user's frames, the outermost first; those of a cause, or of the first in a group, come after."""
    frames: list[str] = []
    for each in _chain(error):
        stack = traceback.extract_tb(each.__traceback__)
        frames += [f"{one.filename}:{one.lineno} {one.name}" for one in stack if not one.filename.startswith(_OURS)]
        if isinstance(each, BaseExceptionGroup):
            frames += _frames(each.exceptions[0])
    return list(dict.fromkeys(frames))[:_MOST_FRAMES]


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and its causes."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found and len(found) < _MOST_CAUSES:
        found.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return found


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        # No loop runs in this thread.
        return None
