"""The cache of responses: limited in bytes and age, with one request to an upstream however many clients wait."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from appliance.config.upstreams import ResponseCacheConfig
from appliance.core.json_edit import JsonObject
from appliance.core.model import ModelRequest, Operation
from appliance.proxy import metrics

# Memory of an entry beside its body: the key, the objects, their slots in tables.
_OVERHEAD_BYTES = 500

# The same input has the same output, whatever the other fields are.
_DETERMINISTIC = frozenset(
    {Operation.EMBEDDING, Operation.RERANK, Operation.SCORE, Operation.CLASSIFICATION, Operation.POOLING}
)

_COMPLETIONS = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION})

# These differ between requests for the same response.
_REQUEST_IDS = frozenset({"traceparent", "tracestate", "x-request-id"})

Result = Literal["hit", "miss", "shared"]


class CachedResponse(msgspec.Struct, frozen=True):
    """A response with its whole body, as the upstream sent it."""

    body: bytes
    status: int
    media_type: str
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    is_cacheable: bool = False

    @property
    def size(self) -> int:
        """Memory in bytes."""
        return len(self.body) + _OVERHEAD_BYTES


@dataclass(slots=True)
class _PendingResponse:
    task: asyncio.Task[CachedResponse]
    waiting: int = 0


class ResponseCache:
    """Responses by the hash of their requests; `clock` is in seconds."""

    def __init__(self, config: ResponseCacheConfig, model: str, clock: Callable[[], float]) -> None:
        self.size = 0
        """Memory of all entries in bytes."""
        self._config = config
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, CachedResponse]] = OrderedDict()
        self._pending: dict[bytes, _PendingResponse] = {}
        self._model = model
        self._counts = {result: metrics.CACHE.labels(model, result) for result in ("hit", "miss", "shared")}
        metrics.track_cache(model, self)

    async def get(
        self, key: bytes, fetch: Callable[[], Awaitable[CachedResponse]], *, is_refresh: bool = False
    ) -> tuple[CachedResponse, Result, float]:
        """Return a response, how it was found, and its age in seconds.

        `fetch` is called if there is no entry, or `is_refresh` asks for a new one, and it is not being fetched already.
        """
        if key in self._entries and not is_refresh:
            created_at, response = self._entries[key]
            if (age := self._clock() - created_at) <= self._config.max_age_seconds:
                self._entries.move_to_end(key)
                self._counts["hit"].inc()
                return response, "hit", age
            self._remove(key)
        result: Result = "shared" if key in self._pending else "miss"
        self._counts[result].inc()
        return await self._wait(key, fetch), result, 0

    def close(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        self.size = 0
        metrics.untrack_cache(self._model, self)

    async def _wait(self, key: bytes, fetch: Callable[[], Awaitable[CachedResponse]]) -> CachedResponse:
        """Wait for the one fetch of a key; it is cancelled when all who wait have left."""
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _PendingResponse(asyncio.ensure_future(self._fetch(key, fetch)))
        pending.waiting += 1
        try:
            return await asyncio.shield(pending.task)
        finally:
            pending.waiting -= 1
            if not pending.waiting and not pending.task.done():
                # The next request fetches again.
                self._pending.pop(key, None)
                pending.task.cancel()
                await asyncio.gather(pending.task, return_exceptions=True)

    async def _fetch(self, key: bytes, fetch: Callable[[], Awaitable[CachedResponse]]) -> CachedResponse:
        this_task = asyncio.current_task()
        try:
            response = await fetch()
        finally:
            if key in self._pending and self._pending[key].task is this_task:
                del self._pending[key]
        if response.is_cacheable and response.size <= self._config.max_bytes:
            self._remove(key)
            self._entries[key] = self._clock(), response
            self.size += response.size
            while self.size > self._config.max_bytes:
                self._remove(next(iter(self._entries)))
        return response

    def _remove(self, key: bytes) -> None:
        if key in self._entries:
            self.size -= self._entries.pop(key)[1].size


class _Sampling(msgspec.Struct):
    stream: bool | None = None
    temperature: float | None = None
    seed: int | None = None


def is_cacheable(request: ModelRequest, document: JsonObject | None) -> bool:
    """
    Return whether the response is the same every time and the client allows it to be cached; a form has no document.
    """
    if "no-store" in cache_directives(request.headers):
        return False
    if request.operation in _DETERMINISTIC:
        return True
    return request.operation in _COMPLETIONS and document is not None and _is_greedy(document)


def cache_directives(headers: Mapping[str, str]) -> frozenset[str]:
    """Return the directives of ``Cache-Control`` (RFC 9111, section 5.2), without values."""
    parts = headers.get("cache-control", "").lower().split(",")
    return frozenset(part.partition("=")[0].strip() for part in parts)


def cache_key(request: ModelRequest, headers: Mapping[str, str], body: bytes, owner: str | None = None) -> bytes:
    """Return the hash of everything that the upstream gets and could respond to, and of the owner of the entry."""
    relevant = sorted((name, value) for name, value in headers.items() if name not in _REQUEST_IDS)
    parts = (request.operation, request.path, request.query, relevant, owner)
    key = hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=32)
    key.update(body)
    return key.digest()


def _is_greedy(document: JsonObject) -> bool:
    """Return whether a completion asks for temperature 0 or a seed, without streaming."""
    members = ((name, document.get(name)) for name in _Sampling.__struct_fields__)
    fields = {name: msgspec.Raw(value) for name, value in members if value is not None}
    try:
        sampling = msgspec.json.decode(msgspec.json.encode(fields), type=_Sampling)
    except (ValueError, RecursionError):
        return False
    return not sampling.stream and (sampling.temperature == 0 or sampling.seed is not None)
