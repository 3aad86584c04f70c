"""The proxy class: servers elsewhere answer, under one name and behind one readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from appliance.config.models import ProxyConfig
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.json_edit import NotAnObjectError
from appliance.core.model import MULTIPART_OPERATIONS, OPENAI_PATHS, ModelRequest, ModelResponse
from appliance.core.multipart import FormError
from appliance.core.request_context import current_context
from appliance.proxy import cache_policy, event_stream, stream_usage
from appliance.proxy.exchange import UpstreamExchange, UpstreamRequest
from appliance.proxy.headers import forward_request_headers, forward_response_headers
from appliance.proxy.model_name import RenamableBody, renamed
from appliance.proxy.pool import UpstreamPool
from appliance.proxy.prefix_affinity import head_of
from appliance.proxy.response import UpstreamResponse
from appliance.proxy.response_cache import CachedResponse, ResponseCache
from appliance.proxy.retry import GENERATIONS
from appliance.proxy.rewrite import Rewrite
from appliance.proxy.stream_usage import HiddenUsage


class ProxyModel:
    """Passes calls on, and answers back."""

    operations = frozenset(OPENAI_PATHS)
    warmup_request = None

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self._rewrite = Rewrite(config.request)
        self._pool: UpstreamPool | None = None
        self._answers: ResponseCache | None = None

    async def load(self, artifacts: Mapping[str, Path]) -> None:  # noqa: ARG002 - a proxy has none
        config = self._config
        if config.cache is not None:
            self._answers = ResponseCache(config.cache, config.name, asyncio.get_running_loop().time)
        # Health checks carry what every request does.
        members = [
            member.model_copy(update={"headers": {**config.headers.set, **member.headers}})
            for member in config.upstreams
        ]
        self._pool = UpstreamPool(
            members,
            config.name,
            balance=config.balance,
            retry=config.retry,
            breaker=config.breaker,
            health=config.health,
        )
        await self._pool.open()

    async def check(self) -> None:
        self._running.require()

    async def handle(self, call: ModelRequest) -> ModelResponse:
        request, body, hidden = await off_loop(len(call.body), self._request, call)
        name = request.body.name or self._config.name
        if self._answers is None or not cache_policy.may_keep(call, body):
            return await self._pass(request, name, hidden)
        kept, result, age = await self._answers.get(
            self._key(call, request),
            partial(self._keep, request),
            is_fresh="no-cache" in cache_policy.directives(call.headers),
        )
        said = {"x-cache": result}
        # What an upstream said beside its answer was about that one request.
        headers = {**said, "age": str(int(age))} if result == "hit" else {**kept.headers, **said}
        return await _reply(kept, name, headers)

    def describe(self) -> Mapping[str, Any]:
        return {}

    def upstreams(self) -> Sequence[Mapping[str, Any]]:
        """How each upstream is; none before they are checked."""
        return [] if self._pool is None else self._pool.describe()

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        if self._answers is not None:
            self._answers.close()

    @property
    def _running(self) -> UpstreamPool:
        if self._pool is None:
            raise AssertionError("asked before it was loaded; this is a bug")
        return self._pool

    def _request(self, call: ModelRequest) -> tuple[UpstreamRequest, bytes, HiddenUsage | None]:
        config, is_form = self._config, call.operation in MULTIPART_OPERATIONS
        try:
            body, hidden = call.body, None
            if not is_form:
                body, hidden = self._asked_usage(call, self._rewrite(call.operation, call.body))
            named = RenamableBody(body, call.headers.get("content-type", "") if is_form else "")
        except FormError as error:
            raise RequestError(str(error), code="invalid_form") from error
        except NotAnObjectError as error:
            raise RequestError(f"The body is not a request: {error}", code="invalid_json") from error
        request = UpstreamRequest(
            path=call.path or OPENAI_PATHS[call.operation][0],
            query=call.query,
            headers=forward_request_headers(call.headers, forward=config.headers.forward, drop=config.headers.drop),
            body=named,
            is_generation=call.operation in GENERATIONS,
            key=head_of(body) if config.balance == "prefix_affinity" else b"",
            patience=config.keep_alive_seconds,
        )
        return request, body, hidden

    def _asked_usage(self, call: ModelRequest, body: bytes) -> tuple[bytes, HiddenUsage | None]:
        """The body with its usage asked for, and what takes that out of the answer, where the client did not ask."""
        # Who drops the option has an upstream that refuses it.
        is_dropped = stream_usage.OPTION in self._config.request.drop
        if call.on_usage is None or call.operation not in stream_usage.OPERATIONS or is_dropped:
            return body, None
        asking = stream_usage.asking(body)
        return (body, None) if asking is None else (asking, HiddenUsage(call.on_usage))

    async def _pass(self, request: UpstreamRequest, name: str, hidden: HiddenUsage | None) -> ModelResponse:
        exchange = await self._running.ask(request)
        answer, silence = exchange.answer, self._config.keep_alive_seconds
        if answer.is_event_stream:
            stream = event_stream.events(exchange, name, silence, hidden)
        elif answer.is_json or answer.status >= 300:
            kept = await self._read(exchange)
            return await _reply(kept, name, kept.headers)
        else:
            stream = event_stream.raw(exchange)
        return ModelResponse(stream, answer.status, answer.media_type, self._downward(answer))

    def _key(self, call: ModelRequest, request: UpstreamRequest) -> bytes:
        record, is_shared = current_context(), self._config.cache is None or self._config.cache.shared
        owner = None if record is None or is_shared else record.key
        return cache_policy.key_of(call, request.headers, request.body.under(""), owner)

    async def _keep(self, request: UpstreamRequest) -> CachedResponse:
        return await self._read(await self._running.ask(request))

    async def _read(self, exchange: UpstreamExchange) -> CachedResponse:
        answer = exchange.answer
        try:
            body = await exchange.whole()
        finally:
            exchange.close()
        may_be_kept = answer.status == 200 and "no-store" not in cache_policy.directives(answer.headers)
        return CachedResponse(body, answer.status, answer.media_type, self._downward(answer), may_be_kept)

    def _downward(self, answer: UpstreamResponse) -> Mapping[str, str]:
        headers = self._config.headers
        return forward_response_headers(answer.headers, expose=headers.expose, drop=headers.drop)


async def _reply(kept: CachedResponse, name: str, headers: Mapping[str, str]) -> ModelResponse:
    """A whole answer under the client's name for the model; an error keeps its body."""
    body = await off_loop(len(kept.body), renamed, kept.body, name) if kept.status < 300 else kept.body
    return ModelResponse(body, kept.status, kept.media_type, headers)
