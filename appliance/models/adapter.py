"""The model class `adapter`: the OpenAI protocol on top of a service that lacks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from appliance.adapters.handlers import Handlers, build_handlers
from appliance.adapters.readiness import Readiness
from appliance.adapters.renderer import Renderer
from appliance.adapters.service_client import ServiceClient
from appliance.config.models import TOKENIZER, AdapterConfig
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import LoadError, RequestError
from appliance.core.http import address_of
from appliance.core.model import ModelRequest, ModelResponse, Operation, Peers
from appliance.core.openai_types import SMALLEST_REQUESTS, Json
from appliance.over_chat import TRANSLATED, respond_over_chat
from appliance.proxy.client import UpstreamClient

_OVER_CHAT = frozenset[Operation]().union(*TRANSLATED.values())


class AdapterModel:
    """Translates requests for its target, and the target's responses back."""

    warmup_request = None

    def __init__(self, config: AdapterConfig, peers: Peers) -> None:
        self.operations = config.protocol.operations
        if Operation.CHAT_COMPLETION in self.operations:
            self.operations |= _OVER_CHAT
        self._config = config
        self._peers = peers
        self._client = None if isinstance(config.target, str) else ServiceClient(UpstreamClient(config.target))
        self._renderer = Renderer()
        self._handlers: Handlers = {}
        self._readiness = Readiness(
            self._send_warmup_request,
            lambda: self._peers.check(config.target) if isinstance(config.target, str) else None,
            lambda: self._client.consecutive_failures if self._client else 0,
        )

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        target = self._config.target
        if isinstance(target, str) and Operation.COMPLETION not in self._peers.operations(target):
            raise LoadError(f"its target {target!r} does not complete prompts; name one that does")
        # In a thread: templates are read and compiled, which may take seconds.
        self._handlers = await asyncio.to_thread(
            build_handlers, self._config, self._client, self._peers, self._renderer, artifacts.get(TOKENIZER)
        )
        self._readiness.start()

    async def check(self) -> None:
        self._readiness.check()

    async def handle(self, request: ModelRequest) -> ModelResponse:
        if request.operation in _OVER_CHAT:
            return await respond_over_chat(request, self._config.name, self.handle)
        body = await off_loop(len(request.body), _decode, request.body)
        response = await self._handlers[request.operation](body, request.headers)
        model = request.model or body.get("model")
        if isinstance(response, dict):
            return ModelResponse(msgspec.json.encode(_named(response, model)))
        return ModelResponse(_encode_events(response, model), media_type=sse.MEDIA_TYPE)

    def upstreams(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """See `DependsOnModels.upstreams`."""
        target = self._config.target
        return [{"name": target if isinstance(target, str) else address_of(target.url)}]

    def describe(self) -> Mapping[str, Any]:
        return {}

    async def close(self) -> None:
        await self._readiness.close()
        await asyncio.to_thread(self._renderer.close)
        if self._client is not None:
            await self._client.close()

    async def _send_warmup_request(self) -> None:
        operation = next(operation for operation in SMALLEST_REQUESTS if operation in self.operations)
        await self._handlers[operation](dict(SMALLEST_REQUESTS[operation]), {})


def _decode(body: bytes) -> Json:
    try:
        request = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(request, dict):
        raise RequestError("The body is not a request: it must be a mapping")
    return request


async def _encode_events(chunks: AsyncGenerator[Json], model: object) -> AsyncGenerator[bytes]:
    """Yield server-sent events in OpenAI's form, with the client's name of the model."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield sse.json_event(_named(chunk, model))
    yield sse.DONE_EVENT


def _named(response: Json, model: object) -> Json:
    """Return a response with the client's name of the model, if the client sent one and the response has one."""
    return response | {"model": model} if isinstance(model, str) and "model" in response else response
