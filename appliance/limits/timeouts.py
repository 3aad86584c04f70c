"""Timeouts of a request: to its first token, and to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

import msgspec

from appliance.config.limits import LimitsConfig
from appliance.core.errors import RequestTimeoutError

Result = TypeVar("Result")


class Timeouts(msgspec.Struct, frozen=True):
    """The moments, in seconds of the monotonic clock, by which a request must have its first and its last token.

    None is no limit. Each method raises a `RequestTimeoutError` if it took too long.
    """

    model: str
    limits: LimitsConfig
    first: float | None
    total: float | None

    @classmethod
    def of(cls, model: str, limits: LimitsConfig) -> Timeouts:
        """Return the timeouts of a request that arrives now."""
        now = time.monotonic()
        first, total = limits.first_token_seconds, limits.total_seconds
        return cls(model, limits, None if first is None else now + first, None if total is None else now + total)

    async def before_first(self, work: Awaitable[Result]) -> Result:
        """Return the result of what must be done before the first token."""
        if self.first is None or (self.total is not None and self.total < self.first):
            return await self.before_end(work)
        return await self._within(self.first, work, "first_token_seconds", self.limits.first_token_seconds)

    async def before_end(self, work: Awaitable[Result]) -> Result:
        """Return the result of what must be done before the last token."""
        if self.total is None:
            return await work
        return await self._within(self.total, work, "total_seconds", self.limits.total_seconds)

    def all_before_end(self, stream: AsyncGenerator[Result]) -> AsyncGenerator[Result]:
        """Return a stream that must end in time, the same one if there is no limit; both are to be closed."""
        return stream if self.total is None else self._each_before_end(stream)

    async def _each_before_end(self, stream: AsyncGenerator[Result]) -> AsyncGenerator[Result]:
        while (each := await self.before_end(anext(stream, None))) is not None:
            yield each

    async def _within(self, moment: float, work: Awaitable[Result], key: str, seconds: float | None) -> Result:
        try:
            async with asyncio.timeout(max(0.0, moment - time.monotonic())) as bound:
                return await work
        except Exception as error:
            # vLLM raises an error of its own when it is cancelled.
            if not bound.expired():
                raise
            raise RequestTimeoutError(
                f"The model {self.model!r} took longer than its limits.{key} of {seconds:g} seconds; "
                "ask for less, or later"
            ) from error
