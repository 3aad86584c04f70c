"""Answers kept for the same question: bounded in bytes and age, and asked for once however many wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from appliance.config.upstreams import ResponseCacheConfig
from appliance.proxy import metrics

# What an entry takes beside its body: the key, the objects, their places in tables.
_OVERHEAD_BYTES = 500

Result = Literal["hit", "miss", "shared"]


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """A whole answer, as the upstream gave it."""

    body: bytes
    status: int
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    may_be_kept: bool = False

    @property
    def size(self) -> int:
        """Memory that it takes, in bytes."""
        return len(self.body) + _OVERHEAD_BYTES


@dataclass(slots=True)
class _PendingResponse:
    task: asyncio.Task[CachedResponse]
    waiting: int = 0


class ResponseCache:
    """Kept answers by the hash of their question; `clock` is in seconds."""

    def __init__(self, config: ResponseCacheConfig, model: str, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, CachedResponse]] = OrderedDict()
        self._bytes = 0
        self._flights: dict[bytes, _PendingResponse] = {}
        self._model = model
        self._counts = {result: metrics.CACHE.labels(model, result) for result in ("hit", "miss", "shared")}
        metrics.show_kept(model, self)

    async def get(
        self, key: bytes, ask: Callable[[], Awaitable[CachedResponse]], *, is_fresh: bool = False
    ) -> tuple[CachedResponse, Result, float]:
        """The answer to a question, how it was come by, and its age in seconds.

        `ask` is called where none is kept, or `is_fresh` asks for a new one, and nobody is asking already.
        """
        found = None if is_fresh else self._look(key)
        if found is not None:
            self._counts["hit"].inc()
            return found[1], "hit", self._clock() - found[0]
        result: Result = "shared" if key in self._flights else "miss"
        self._counts[result].inc()
        return await self._fly(key, ask), result, 0

    @property
    def size(self) -> int:
        """Memory that kept answers take, in bytes."""
        return self._bytes

    def close(self) -> None:
        """Keep nothing any more."""
        self._kept.clear()
        self._bytes = 0
        metrics.hide_kept(self._model, self)

    def _look(self, key: bytes) -> tuple[float, CachedResponse] | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if self._clock() - found[0] > self._config.max_age_seconds:
            self._forget(key)
            return None
        self._kept.move_to_end(key)
        return found

    async def _fly(self, key: bytes, ask: Callable[[], Awaitable[CachedResponse]]) -> CachedResponse:
        """Wait for the one who asks; when all who wait have left, the asking ends too."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _PendingResponse(asyncio.ensure_future(self._ask(key, ask)))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Whoever comes now asks anew.
                self._flights.pop(key, None)
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)

    async def _ask(self, key: bytes, ask: Callable[[], Awaitable[CachedResponse]]) -> CachedResponse:
        me = asyncio.current_task()
        try:
            kept = await ask()
        finally:
            if key in self._flights and self._flights[key].task is me:
                del self._flights[key]
        if kept.may_be_kept and kept.size <= self._config.max_bytes:
            self._keep(key, kept)
        return kept

    def _keep(self, key: bytes, kept: CachedResponse) -> None:
        self._forget(key)
        self._kept[key] = self._clock(), kept
        self._bytes += kept.size
        while self._bytes > self._config.max_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: bytes) -> None:
        if key in self._kept:
            self._bytes -= self._kept.pop(key)[1].size
