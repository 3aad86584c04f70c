"""The adapter class: an OpenAI face on a model that lacks one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from appliance.adapters.chat_request import ChatRequestBuilder
from appliance.adapters.chat_template import chat_template
from appliance.adapters.handlers import Handlers, over_completions, over_http, over_oip
from appliance.adapters.http_client import ServiceClient
from appliance.adapters.messages import Json
from appliance.adapters.readiness import Readiness
from appliance.adapters.renderer import Renderer
from appliance.adapters.target import PeerTarget, RemoteTarget
from appliance.config.adapters import CompletionsConfig, OipConfig
from appliance.config.models import TOKENIZER, AdapterConfig
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import LoadError, RequestError
from appliance.core.http import address_of
from appliance.core.model import ModelRequest, ModelResponse, Operation, Peers
from appliance.proxy.client import UpstreamClient

Part = TypeVar("Part")

# The smallest request of each operation, the one that shows most first.
_PROOFS: Mapping[Operation, Json] = {
    Operation.CHAT_COMPLETION: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0},
    Operation.COMPLETION: {"prompt": "Hello", "max_tokens": 1, "temperature": 0},
    Operation.EMBEDDING: {"input": "Hello"},
    Operation.RERANK: {"query": "Hello", "documents": ["Hello"]},
}


class AdapterModel:
    """Translates what is asked for its target, and the target's answers back."""

    warmup_request = None

    def __init__(self, config: AdapterConfig, peers: Peers) -> None:
        self.operations = config.protocol.operations
        self._config = config
        self._peers = peers
        self._wire = None if isinstance(config.target, str) else ServiceClient(UpstreamClient(config.target))
        self._renderer = Renderer()
        self._faces: Handlers = {}
        self._readiness = Readiness(self._prove, self._look, lambda: self._wire.silences if self._wire else 0)

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        target = self._config.target
        if isinstance(target, str) and Operation.COMPLETION not in self._peers.operations(target):
            raise LoadError(f"its target {target!r} does not complete prompts; name one that does")
        # In a thread: templates are read and compiled, which may take seconds.
        self._faces = await asyncio.to_thread(self._made, artifacts)
        self._readiness.begin()

    async def check(self) -> None:
        self._readiness.check()

    async def handle(self, call: ModelRequest) -> ModelResponse:
        asked = await off_loop(len(call.body), _decoded, call.body)
        said = await self._faces[call.operation](asked, call.headers)
        if isinstance(said, dict):
            return ModelResponse(msgspec.json.encode(said))
        return ModelResponse(_events(said), media_type=sse.MEDIA_TYPE)

    def upstreams(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """How the target is, for probes."""
        target = self._config.target
        return [{"name": target if isinstance(target, str) else address_of(target.url)}]

    def describe(self) -> Mapping[str, Any]:
        return {}

    async def close(self) -> None:
        await self._readiness.close()
        await asyncio.to_thread(self._renderer.close)
        if self._wire is not None:
            await self._wire.close()

    def _made(self, artifacts: Mapping[str, Path]) -> Handlers:
        templated = self._config.protocol.templated
        template = None if templated is None else chat_template(templated, artifacts.get(TOKENIZER), self._renderer)
        chat = None if template is None or templated is None else ChatRequestBuilder(template, templated.stop)
        name, target, protocol = self._config.name, self._config.target, self._config.protocol
        model = name if isinstance(target, str) else target.model or name
        if isinstance(protocol, CompletionsConfig):
            asked = RemoteTarget(self._wire, model) if self._wire else PeerTarget(str(target), self._peers)
            return over_completions(name, protocol, asked, _given(chat))
        wire = _given(self._wire)
        if isinstance(protocol, OipConfig):
            return over_oip(name, protocol, wire, model, chat)
        return over_http(name, protocol, wire, model, chat, self._renderer)

    async def _prove(self) -> None:
        operation = next(each for each in _PROOFS if each in self.operations)
        await self._faces[operation](dict(_PROOFS[operation]), {})

    def _look(self) -> None:
        if isinstance(self._config.target, str):
            self._peers.check(self._config.target)


def _given(part: Part | None) -> Part:
    """What the config's rules say is there."""
    if part is None:
        raise AssertionError("the config was not checked; this is a bug")
    return part


def _decoded(body: bytes) -> Json:
    try:
        said = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(said, dict):
        raise RequestError("The body is not a request: it must be a mapping")
    return said


async def _events(chunks: AsyncGenerator[Json]) -> AsyncGenerator[bytes]:
    """Server-sent events as OpenAI has them."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield sse.json_event(chunk)
    yield sse.DONE_EVENT
