"""The model class `proxy`: upstreams answer its requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from appliance.config.models import ProxyConfig
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.json_edit import JsonObject, NotAnObjectError
from appliance.core.model import MULTIPART_OPERATIONS, OPENAI_PATHS, ModelRequest, ModelResponse, Operation
from appliance.core.multipart import FormError
from appliance.core.request_context import current_context
from appliance.core.rewrite import RequestBody, rename_response, request_usage
from appliance.over_chat import TRANSLATED, Translator
from appliance.proxy.headers import forward_request_headers, forward_response_headers
from appliance.proxy.load_balancing import prompt_prefix
from appliance.proxy.pool import UpstreamPool
from appliance.proxy.response import UpstreamResponse
from appliance.proxy.response_cache import CachedResponse, ResponseCache, cache_directives, cache_key, is_cacheable
from appliance.proxy.stream import relay_events, relay_translated
from appliance.proxy.upstream import UpstreamRequest

_PROTOCOLS = {operation: protocol for protocol, operations in TRANSLATED.items() for operation in operations}

_NO_ROUTE = frozenset({404, 405})

_STREAM = re.compile(rb'"stream"\s*+:\s*+true')

# Streams of `/v1/responses` and of messages always have their usage.
_USAGE_OPERATIONS = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION})


class _PreparedRequest(msgspec.Struct, frozen=True):
    upstream: UpstreamRequest
    model: str
    """The client's name of the model, for the response."""
    is_cacheable: bool
    on_usage: Callable[[bytes], None] | None
    """Gets the usage of a stream that the client did not request; None if the usage stays in the stream."""


class ProxyModel:
    """Forwards requests to upstreams, and their responses to clients."""

    operations = frozenset(OPENAI_PATHS)
    warmup_request = None

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self._pool: UpstreamPool | None = None
        self._cache: ResponseCache | None = None

    async def load(self, artifacts: Mapping[str, Path]) -> None:  # noqa: ARG002 - a proxy has none
        config = self._config
        if config.cache is not None:
            self._cache = ResponseCache(config.cache, config.name, asyncio.get_running_loop().time)
        self._pool = UpstreamPool(config)
        await self._pool.open()

    async def check(self) -> None:
        self._loaded_pool.require_available()

    async def handle(self, request: ModelRequest) -> ModelResponse:
        prepared = await off_loop(len(request.body), self._prepare, request)
        if self._cache is None or not prepared.is_cacheable:
            return await self._forward(prepared)
        response, result, age = await self._cache.get(
            self._cache_key(request, prepared.upstream),
            partial(self._fetch, prepared.upstream),
            is_refresh="no-cache" in cache_directives(request.headers),
        )
        # The upstream's headers belong to the request that it answered.
        headers = {"age": str(int(age))} if result == "hit" else response.headers
        return await _model_response(response, prepared.model, {**headers, "x-cache": result})

    def describe(self) -> Mapping[str, Any]:
        return {}

    def upstreams(self) -> Sequence[Mapping[str, Any]]:
        """Return the status of each upstream; empty before the first check."""
        return [] if self._pool is None else self._pool.describe()

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        if self._cache is not None:
            self._cache.close()

    @property
    def _loaded_pool(self) -> UpstreamPool:
        if self._pool is None:
            raise AssertionError("used before it was loaded; this is a bug")
        return self._pool

    def _prepare(self, request: ModelRequest) -> _PreparedRequest:
        config = self._config
        document, on_usage = None, None
        try:
            if request.operation in MULTIPART_OPERATIONS:
                body = RequestBody.of(request.body, request.headers.get("content-type", ""))
            elif self._reads_members(request):
                document = JsonObject(request.body)
                if request.operation in _USAGE_OPERATIONS and request.on_usage is not None and request_usage(document):
                    on_usage = request.on_usage
                body = RequestBody.of_json(document)
            else:
                body = RequestBody.of_object(request.body)
        except FormError as error:
            raise RequestError(str(error), code="invalid_form") from error
        except NotAnObjectError as error:
            raise RequestError(f"The body is not a request: {error}", code="invalid_json") from error
        model = request.model or body.model or config.name
        upstream = UpstreamRequest(
            operation=request.operation,
            path=request.path or OPENAI_PATHS[request.operation][0],
            query=request.query,
            headers=forward_request_headers(request.headers, forward=config.headers.forward, drop=config.headers.drop),
            body=body,
            model=model,
            prompt_prefix=prompt_prefix(document) if document and config.balance == "prefix_affinity" else b"",
            patience=config.keep_alive_seconds,
        )
        may_cache = config.cache is not None and is_cacheable(request, document)
        return _PreparedRequest(upstream, model, may_cache, on_usage)

    def _reads_members(self, request: ModelRequest) -> bool:
        """Whether more than the name of the model is read or changed in the body of a request."""
        needs_all = self._config.cache is not None or self._config.balance == "prefix_affinity"
        is_streamed = request.is_streamed or _STREAM.search(request.body) is not None
        return needs_all or (is_streamed and request.operation in _USAGE_OPERATIONS)

    async def _forward(self, request: _PreparedRequest) -> ModelResponse:
        response = await self._loaded_pool.send(request.upstream)
        if response.translator is not None:
            return await self._translated(response, response.translator)
        if response.is_event_stream:
            stream = relay_events(response, request.model, self._config.keep_alive_seconds, request.on_usage)
        elif response.is_json or response.status >= 300:
            whole = await self._read(response)
            _require_route(request.upstream, whole)
            return await _model_response(whole, request.model, whole.headers)
        else:
            stream = response.read_pieces()
        return ModelResponse(stream, response.status, response.media_type, self._returned_headers(response))

    async def _translated(self, response: UpstreamResponse, translator: Translator) -> ModelResponse:
        headers = self._returned_headers(response)
        if response.status < 300 and translator.is_streamed:
            stream = relay_translated(response, translator, self._config.keep_alive_seconds)
            return ModelResponse(stream, response.status, sse.MEDIA_TYPE, headers)
        body = await response.read()
        if response.status < 300:
            body = await off_loop(len(body), translator.response, body)
        else:
            body = translator.error(response.status, body)
        return ModelResponse(body, response.status, headers=headers)

    def _cache_key(self, request: ModelRequest, upstream: UpstreamRequest) -> bytes:
        context, is_shared = current_context(), self._config.cache is None or self._config.cache.shared
        owner = None if context is None or is_shared else context.key
        return cache_key(request, upstream.headers, upstream.body.with_model(""), owner)

    async def _fetch(self, request: UpstreamRequest) -> CachedResponse:
        return await self._read(await self._loaded_pool.send(request))

    async def _read(self, response: UpstreamResponse) -> CachedResponse:
        body = await response.read()
        is_cacheable = response.status == 200 and "no-store" not in cache_directives(response.headers)
        headers = self._returned_headers(response)
        return CachedResponse(body, response.status, response.media_type, headers, is_cacheable)

    def _returned_headers(self, response: UpstreamResponse) -> Mapping[str, str]:
        headers = self._config.headers
        return forward_response_headers(response.headers, expose=headers.expose, drop=headers.drop)


def _require_route(request: UpstreamRequest, response: CachedResponse) -> None:
    """Raise a RequestError with the remedy if the upstream lacks the protocol, and not the model."""
    protocol = _PROTOCOLS.get(request.operation)
    if protocol is None or response.status not in _NO_ROUTE or b"model" in response.body.lower():
        return
    message = f"The upstream has no {request.path}; `translate: [{protocol}]` of the upstream, in the config of the "
    raise RequestError(
        f"{message}server, translates such requests to chat completions",
        status=response.status,
        code="unsupported_operation",
    )


async def _model_response(response: CachedResponse, model: str, headers: Mapping[str, str]) -> ModelResponse:
    """Return a response with the client's name of the model; an error keeps its body."""
    body = response.body
    if response.status < 300:
        body = await off_loop(len(body), rename_response, body, model)
    return ModelResponse(body, response.status, response.media_type, headers)
