"""Methods of users, which may be asynchronous or plain: both are awaited, and neither holds up the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator
from contextlib import suppress
from typing import Any, TypeVar

from appliance.core.log_output import end_line
from appliance.python_api.user_code import UserCodeError, name_of, user_code

Result = TypeVar("Result")

_END = object()
_THREAD = "appliance-model"


async def called(method: Callable[..., Any], *args: Any, **keywords: Any) -> Any:  # Any: users' own
    """What the method returns; a plain one runs in a thread.

    Raises:
        UserCodeError: the method raised.
    """
    with user_code(name_of(method)):
        return await returned(method, *args, **keywords)


async def returned(method: Callable[..., Any], *args: Any, **keywords: Any) -> Any:  # Any: users' own
    """As `called`, and what the method raises passes."""
    if inspect.isasyncgenfunction(method):
        return method(*args, **keywords)
    if inspect.iscoroutinefunction(method):
        return await method(*args, **keywords)
    result = await in_thread(lambda: method(*args, **keywords))
    return await result if inspect.isawaitable(result) else result


async def in_thread(work: Callable[[], Result]) -> Result:
    """The result of `work`, done in a thread of its own, which ends with the process, done or not.

    A pool's threads would be waited for when the process ends, and a load that hangs would hold it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is one
        else:
            done.set_exception(error)

    def run() -> None:
        result: Result | None = None
        fault: BaseException | None = None
        try:
            result = context.run(_whole, work)
        except (StopIteration, GeneratorExit) as error:
            # A future takes no StopIteration, and GeneratorExit would close the coroutines that wait for it.
            fault = RuntimeError(f"raised {type(error).__name__}")
            fault.__cause__ = error
        except BaseException as error:
            fault = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=run, daemon=True, name=_THREAD).start()
    return await done


def _whole(work: Callable[[], Result]) -> Result:
    """Do the work, and write a line that it printed only a part of."""
    try:
        return work()
    finally:
        end_line()


def is_stream(returned: Any) -> bool:  # Any: whatever a user returned
    """It is to be iterated over: asynchronously, or a plain generator."""
    return isinstance(returned, AsyncIterable | Generator)


async def items(stream: Any) -> AsyncGenerator[Any]:  # Any: whatever a user yields
    """The items of a stream; closing this closes it.

    Raises:
        UserCodeError: the stream raised.
    """
    what = f"the stream of {name_of(stream)}"
    if isinstance(stream, Generator):
        stream = _threaded(stream)
    with user_code(what):
        iterator = aiter(stream)
    try:
        while (item := await _next(iterator, what)) is not _END:
            yield item
    finally:
        # Only generators have it. What it raises is logged, and its client has all items.
        close = getattr(iterator, "aclose", None)
        if close is not None:
            with suppress(UserCodeError), user_code(what):
                await close()


async def _next(iterator: AsyncIterator[Any], what: str) -> Any:  # Any: as above
    with user_code(what):
        try:
            return await anext(iterator)
        except StopAsyncIteration:
            return _END


async def _threaded(generator: Generator[Any, None, None]) -> AsyncGenerator[Any]:
    """A plain generator, each step of it in a thread; one that is left in the middle of a step is closed after it."""
    is_stepping = threading.Lock()

    def step() -> Any:
        with is_stepping:
            return next(generator, _END)

    def close() -> None:
        with is_stepping, suppress(UserCodeError), user_code(f"closing the stream of {name_of(generator)}"):
            generator.close()

    try:
        while (item := await in_thread(step)) is not _END:
            yield item
    finally:
        # Not awaited: the step under way can take any time, and nobody waits for its result.
        threading.Thread(target=close, daemon=True, name=_THREAD).start()
