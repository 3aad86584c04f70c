"""Calls of users' code: methods and streams, plain or asynchronous, and the errors they raise.

Users raise anything, `SystemExit`, `KeyboardInterrupt` and `CancelledError` included, which would end more than the
request. It is logged with the user's frames and becomes one error that protocols can render. Plain code runs in a
thread, so that it never blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog

import appliance
from appliance.core.concurrency import in_thread
from appliance.core.errors import ApplianceError
from appliance.core.logging_setup import end_line

log: structlog.stdlib.BoundLogger = structlog.get_logger()

Result = TypeVar("Result")

_OUR_DIRECTORY = str(Path(appliance.__file__).parent)

_MAX_TEXT = 2000
_MAX_FRAMES = 20
_MAX_CAUSES = 5

_END = object()


class UserCodeError(ApplianceError):
    """Code of a model written in Python raised an exception that is not one of ours."""

    def __init__(self, code: str, error: BaseException) -> None:
        self.frames = _frames(error)
        self._code, self._reason = code, describe_exception(error)
        super().__init__(f"{code} raised {self._reason}")

    def log(self) -> None:
        """Log it with the user's frames."""
        log.error("model.code_failed", code=self._code, reason=self._reason, frames=self.frames)


@contextmanager
def user_code(name: str, *, is_logged: bool = True, passes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Run code of a user, called `name` in messages; `is_logged` says whether an exception is logged here.

    Our own errors and `NotImplementedError` pass, because users raise them on purpose, and those of `passes`.
    """
    task = _current_task()
    expected: tuple[type[Exception], ...] = (ApplianceError, NotImplementedError, *passes)
    try:
        yield
    except expected:
        raise
    except BaseException as error:
        is_cancellation = isinstance(error, asyncio.CancelledError | GeneratorExit)
        # Our own task is being cancelled, unless the user's code raised this by itself.
        if is_cancellation and (task is None or task is not _current_task() or task.cancelling()):
            raise
        wrapped = UserCodeError(name, error)
        if is_logged:
            wrapped.log()
        raise wrapped from error
    finally:
        end_line()


# Any: users' own types
async def call_method(method: Callable[..., Any], *args: Any, is_logged: bool = True, **keywords: Any) -> Any:
    """Return the result of a method; a plain one runs in a thread."""
    with user_code(code_name(method), is_logged=is_logged):
        if inspect.isasyncgenfunction(method):
            return method(*args, **keywords)
        if inspect.iscoroutinefunction(method):
            return await method(*args, **keywords)
        result = await run_in_thread(lambda: method(*args, **keywords))
        return await result if inspect.isawaitable(result) else result


async def run_in_thread(work: Callable[[], Result]) -> Result:
    """Return the result of `work`, done in a daemon thread with the caller's context."""

    def run() -> Result:
        try:
            return work()
        except (StopIteration, GeneratorExit) as error:
            # A future takes no StopIteration, and GeneratorExit would close the coroutines that wait for it.
            raise RuntimeError(f"raised {type(error).__name__}") from error
        finally:
            # It may have printed a part of a line.
            end_line()

    return await in_thread(contextvars.copy_context().run, run)


def is_stream(result: Any) -> bool:  # Any: a user's own
    """Return whether it is to be iterated over: asynchronously, or as a plain generator."""
    return isinstance(result, AsyncIterable | Generator)


async def stream_items(stream: Any) -> AsyncGenerator[Any]:  # Any: a user's own
    """Yield the items of a stream; closing this closes it."""
    name = f"the stream of {code_name(stream)}"
    if isinstance(stream, Generator):
        stream = _in_threads(stream)
    with user_code(name):
        iterator = aiter(stream)
    try:
        while (item := await _next(iterator, name)) is not _END:
            yield item
    finally:
        # Only generators have it. What it raises is logged, and its client has all items.
        close = getattr(iterator, "aclose", None)
        if close is not None:
            with suppress(UserCodeError), user_code(name):
                await close()


async def _next(iterator: AsyncIterator[Any], name: str) -> Any:  # Any: a user's own
    with user_code(name):
        return await anext(iterator, _END)


async def _in_threads(generator: Generator[Any, None, None]) -> AsyncGenerator[Any]:
    """Run each step of a plain generator in a thread; it is closed after the current step."""
    is_stepping = threading.Lock()

    def step() -> Any:
        with is_stepping:
            return next(generator, _END)

    def close() -> None:
        with is_stepping, suppress(UserCodeError), user_code(f"closing the stream of {code_name(generator)}"):
            generator.close()

    try:
        while (item := await run_in_thread(step)) is not _END:
            yield item
    finally:
        # Not awaited: the current step may take any time, and its result is not needed.
        threading.Thread(target=close, daemon=True).start()


def code_name(code: Any) -> str:  # Any: a method, a generator, or what a user has in its place
    """Return the name of a piece of a user's code for messages, such as ``Iris.predict``."""
    name = str(getattr(code, "__name__", type(code).__name__))
    owner = getattr(code, "__self__", None)
    return name if owner is None else f"{type(owner).__name__}.{name}"


def describe_exception(error: BaseException) -> str:
    """Return type and text of an exception, of those in its group, and of its causes."""
    return ", caused by ".join(map(_text, _causes(error)))


def _text(error: BaseException) -> str:
    try:
        text = str(error)[:_MAX_TEXT]
    except BaseException as other:
        text = f"its __str__ raised {type(other).__name__}"
    described = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        described += f" ({'; '.join(map(_text, error.exceptions[:_MAX_CAUSES]))})"
    return described


def _frames(error: BaseException) -> Sequence[str]:
    """Return the user's frames, outermost first, followed by those of causes and of the first in a group."""
    frames: list[str] = []
    for each in _causes(error):
        stack = traceback.extract_tb(each.__traceback__)
        frames += [f"{f.filename}:{f.lineno} {f.name}" for f in stack if not f.filename.startswith(_OUR_DIRECTORY)]
        if isinstance(each, BaseExceptionGroup):
            frames += _frames(each.exceptions[0])
    return list(dict.fromkeys(frames))[:_MAX_FRAMES]


def _causes(error: BaseException) -> Sequence[BaseException]:
    """Return an exception and its causes."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found and len(found) < _MAX_CAUSES:
        found.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return found


def _current_task() -> asyncio.Task[Any] | None:
    # No loop runs in a thread for plain code.
    with suppress(RuntimeError):
        return asyncio.current_task()
    return None
