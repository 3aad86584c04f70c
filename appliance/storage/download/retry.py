"""Retries with exponential backoff for requests to a store, and progress reports during a wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import TypeVar

import structlog

from appliance.config.storage import TransferConfig
from appliance.core.concurrency import backoff_seconds
from appliance.core.disk import OnProgress
from appliance.core.errors import StorageTimeoutError, StorageUnavailableError

log = structlog.get_logger()

T = TypeVar("T")

_PROGRESS_INTERVAL_SECONDS = 0.5
_FIRST_DELAY_SECONDS = 0.25
_MAX_DELAY_SECONDS = 8.0

# A longer delay is told to the user, who would take it for a stall.
_NOTICEABLE_SECONDS = 10.0

on_wait: ContextVar[Callable[[float], None]] = ContextVar("on_wait", default=lambda _: None)
"""Called with the seconds of a noticeable delay; set by those who show the progress of a download."""


class StallError(StorageUnavailableError):
    """No data arrived for `stall_seconds`."""

    def __init__(self, description: str, config: TransferConfig) -> None:
        super().__init__(
            f"{description}: no data for {config.stall_seconds:g} seconds; check the network and the store, "
            "or raise storage.transfer.stall_seconds"
        )


class Backoff:
    """Delay between the attempts of one request; gives up after `config.retries` consecutive failures."""

    def __init__(self, config: TransferConfig) -> None:
        self._config = config
        self._failures = 0

    def reset(self) -> None:
        """Forget earlier failures, because data arrived."""
        self._failures = 0

    async def wait(self, error: StorageUnavailableError) -> None:
        """Sleep before the next attempt, as long as the store asks for.

        Raises:
            StorageUnavailableError: no attempt is left, or the store asks for more than `config.timeout_seconds`;
                `error` itself.
            StorageTimeoutError: no attempt is left, and the last failure was a stall.
        """
        told = error.retry_after or 0
        if self._failures >= self._config.retries or told > self._config.timeout_seconds:
            raise StorageTimeoutError(str(error)) if isinstance(error, StallError) else error
        self._failures += 1
        seconds = told + backoff_seconds(
            self._failures, first_seconds=_FIRST_DELAY_SECONDS, max_seconds=_MAX_DELAY_SECONDS
        )
        is_noticeable = seconds > _NOTICEABLE_SECONDS
        if is_noticeable:
            on_wait.get()(seconds)
        write = log.warning if is_noticeable else log.info
        write("storage.retried", reason=str(error), failures=self._failures, delay_seconds=round(seconds, 2))
        await asyncio.sleep(seconds)


async def with_retries(request: Callable[[], Coroutine[None, None, T]], description: str, config: TransferConfig) -> T:
    """Return the result of `request()`, retrying while the store is unavailable."""
    backoff = Backoff(config)
    while True:
        try:
            async with asyncio.timeout(config.stall_seconds):
                return await request()
        except TimeoutError:
            await backoff.wait(StallError(description, config))
        except StorageUnavailableError as error:
            await backoff.wait(error)


async def with_progress(
    work: Coroutine[None, None, T],
    on_progress: OnProgress,
    count: Callable[[], tuple[int, int | None]] = lambda: (0, None),
) -> T:
    """Return the result of `work`; every half second and at the end, `on_progress` gets the bytes of `count()`."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            on_progress(*count())
            await asyncio.wait({task}, timeout=_PROGRESS_INTERVAL_SECONDS)
        result = task.result()
        on_progress(*count())
        return result
    finally:
        task.cancel()
        await asyncio.wait({task})
