"""
Methods of users, which may be asynchronous or plain: both are awaited, and neither holds up the event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator
from typing import Any, TypeVar

Result = TypeVar("Result")

_END = object()
_THREAD = "appliance-model"


async def called(method: Callable[..., Any], *args: Any, **keywords: Any) -> Any:  # Any: users' own
    """
    What the method returns; a plain one runs in a thread.
    """
    if inspect.isasyncgenfunction(method):
        return method(*args, **keywords)
    if inspect.iscoroutinefunction(method):
        return await method(*args, **keywords)
    result = await in_thread(lambda: method(*args, **keywords))
    return await result if inspect.isawaitable(result) else result


async def in_thread(work: Callable[[], Result]) -> Result:
    """
    The result of `work`, done in a thread of its own, which ends with the process, done or not.

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
            result = context.run(work)
        except StopIteration as error:
            # A future takes no StopIteration.
            fault = RuntimeError(f"raised StopIteration: {error}")
        except BaseException as error:
            fault = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=run, daemon=True, name=_THREAD).start()
    return await done


def is_stream(returned: Any) -> bool:  # Any: whatever a user returned
    """
    It is to be iterated over: asynchronously, or a plain generator.
    """
    return isinstance(returned, AsyncIterable | Generator)


async def items(stream: Any) -> AsyncGenerator[Any]:  # Any: whatever a user yields
    """
    The items of a stream; closing this closes it.
    """
    if isinstance(stream, Generator):
        stream = _threaded(stream)
    iterator = aiter(stream)
    try:
        async for item in iterator:
            yield item
    finally:
        # Only generators have it.
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


async def _threaded(generator: Generator[Any, None, None]) -> AsyncGenerator[Any]:
    """
    A plain generator, each step of it in a thread; one that is left in the middle of a step is closed after it.
    """
    is_stepping = threading.Lock()

    def step() -> Any:
        with is_stepping:
            return next(generator, _END)

    def close() -> None:
        with is_stepping:
            generator.close()

    try:
        while (item := await in_thread(step)) is not _END:
            yield item
    finally:
        # Not awaited: the step under way can take any time, and nobody waits for its result.
        threading.Thread(target=close, daemon=True, name=_THREAD).start()
