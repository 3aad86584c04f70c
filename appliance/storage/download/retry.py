"""How long a store is waited for, and how often it is asked again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TypeVar

import structlog

from appliance.config.storage import TransferConfig
from appliance.core.errors import StorageTimeoutError, StorageUnavailableError

log = structlog.get_logger()

T = TypeVar("T")

TICK_SECONDS = 0.5
"""How long work may go on without a word to whoever waits for it."""

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 8.0
_LONGEST_PAUSE_ASKED_FOR_SECONDS = 120.0


class StallError(StorageUnavailableError):
    """Nothing came for too long."""


class Backoff:
    """Counts the failures in a row of one request, and pauses between its tries."""

    def __init__(self, limits: TransferConfig) -> None:
        self._limits = limits
        self._failures = 0

    def renew(self) -> None:
        """Bytes came: what failed before is forgotten."""
        self._failures = 0

    async def pause(self, error: StorageUnavailableError) -> None:
        """Wait before the next try.

        Raises:
            StorageUnavailableError: there is none, because the request failed too often; it is `error` itself.
            StorageTimeoutError: likewise, and it was for silence.
        """
        if self._failures >= self._limits.retries:
            raise StorageTimeoutError(str(error)) if isinstance(error, StallError) else error
        # Jitter, lest all requests come back at the same moment to a store that was too busy for them.
        longest = min(_FIRST_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS)
        asked_for = min(error.retry_after or 0, _LONGEST_PAUSE_ASKED_FOR_SECONDS)
        self._failures += 1
        seconds = asked_for + random.uniform(longest / 2, longest)  # noqa: S311 - no secret
        log.info("storage.retried", reason=str(error), failures=self._failures, pause_seconds=round(seconds, 2))
        await asyncio.sleep(seconds)


async def with_retries(ask: Callable[[], Coroutine[None, None, T]], what: str, limits: TransferConfig) -> T:
    """The answer to a question that is asked again while the store cannot answer it.

    Raises:
        StorageError: the store refuses it, or went on failing.
    """
    patience = Backoff(limits)
    while True:
        try:
            async with asyncio.timeout(limits.stall_seconds):
                return await ask()
        except TimeoutError:
            await patience.pause(silence(what, limits))
        except StorageUnavailableError as error:
            await patience.pause(error)


async def with_progress(work: Coroutine[None, None, T], tick: Callable[[], None]) -> T:
    """The result of `work`, while `tick` is called every half second and at the end, and may raise to stop it."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            tick()
            await asyncio.wait({task}, timeout=TICK_SECONDS)
        result = task.result()
        tick()
        return result
    finally:
        task.cancel()
        await asyncio.wait({task})


def silence(what: str, limits: TransferConfig) -> StallError:
    """The error for `stall_seconds` in which nothing came."""
    return StallError(
        f"{what}: nothing came for {limits.stall_seconds:g} seconds; check the network and the store, "
        "or raise storage.transfer.stall_seconds"
    )
