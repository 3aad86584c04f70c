"""Chats and completions over a target that completes prompts: a model of the same file, or a server elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from appliance.adapters.chat_response import ChatResponseFormat, chat_chunks, chat_completion
from appliance.adapters.service_client import (
    MAX_RESPONSE_BYTES,
    Headers,
    ServiceClient,
    decode_response,
    read_events,
    require_object,
)
from appliance.config.adapters import CompletionsConfig
from appliance.core import sse
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import OPENAI_PATHS, ModelRequest, Operation, Peers
from appliance.core.openai_types import Json

# OpenAI's completions end after 16 tokens by default, which is too short for a chat.
_DEFAULT_MAX_TOKENS = 1024


class CompletionTarget(Protocol):
    """Answers OpenAI's requests in JSON."""

    prompt_defaults: Json
    """Defaults of the fields of a request whose prompt a template made."""

    async def send(self, operation: Operation, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """Return the response, or its chunks if the body requests a stream and the target has one."""

    async def remaining_tokens(self, prompt: str, headers: Headers) -> int | None:
        """Return the tokens that the context has left after the prompt; None if they are unknown."""


class CompletionsOperations:
    """Chats and completions of the model `name`, over the completions of a target."""

    def __init__(self, name: str, config: CompletionsConfig, target: CompletionTarget) -> None:
        self._name = name
        self._config = config
        self._target = target

    async def chat(self, body: Json, completion: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """Return the chat completion, or its chunks; `completion` is the request for the completion of its prompt."""
        fields = {**self._target.prompt_defaults, **self._config.defaults, **completion}
        request = {name: value for name, value in fields.items() if value is not None}
        if "max_tokens" not in request:
            left = self._config.max_tokens or await self._target.remaining_tokens(completion["prompt"], headers)
            request["max_tokens"] = left or _DEFAULT_MAX_TOKENS
        form = ChatResponseFormat.of(body, self._name, self._config)
        response = await self._send(request, headers)
        return chat_completion(response, form) if isinstance(response, dict) else chat_chunks(response, form)

    async def complete(self, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """Return the completion of the target, or its chunks."""
        response = await self._send({**self._config.defaults, **body}, headers)
        return response | {"model": self._name} if isinstance(response, dict) else _named(response, self._name)

    async def _send(self, request: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        response = await self._target.send(Operation.COMPLETION, request, headers)
        if request.get("stream"):
            return _as_chunks(response) if isinstance(response, dict) else response
        if not isinstance(response, dict):
            await response.aclose()
            raise GatewayError("The target sent a stream, which was not requested")
        return response


async def _as_chunks(completion: Json) -> AsyncGenerator[Json]:
    """Yield the completion of a target that does not stream as one chunk, and its usage."""
    yield {name: value for name, value in completion.items() if name != "usage"}
    if completion.get("usage"):
        yield {**completion, "choices": []}


async def _named(chunks: AsyncGenerator[Json], name: str) -> AsyncGenerator[Json]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk | {"model": name}


class PeerTarget:
    """A model of the same file."""

    # It accepts vLLM's fields, and the template has written the special tokens.
    prompt_defaults: Json = {"add_special_tokens": False}  # noqa: RUF012 - never changed

    def __init__(self, name: str, peers: Peers) -> None:
        self._name = name
        self._peers = peers

    async def send(self, operation: Operation, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        encoded = msgspec.json.encode(body | {"model": self._name})
        response = await self._peers.handle(self._name, ModelRequest(operation, encoded, headers))
        if isinstance(response.body, bytes):
            return require_object(decode_response(response.status, response.body, response.headers))
        if response.status < 300 and response.media_type.startswith(sse.MEDIA_TYPE):
            return _objects(read_events(response.body, has_events=True))
        # A proxy passes on bodies of other types as a stream.
        return require_object(decode_response(response.status, await _read(response.body), response.headers))

    async def remaining_tokens(self, prompt: str, headers: Headers) -> int | None:
        if Operation.TOKENIZE not in self._peers.operations(self._name):
            return None
        try:
            response = await self.send(Operation.TOKENIZE, self.prompt_defaults | {"prompt": prompt}, headers)
        except RequestError:
            # The upstream of a proxy may not count tokens.
            return None
        if not isinstance(response, dict):
            return None
        longest, count = response.get("max_model_len"), response.get("count")
        return max(1, longest - count) if isinstance(longest, int) and isinstance(count, int) else None


class RemoteTarget:
    """A server elsewhere; `name` is its name of the model."""

    # An unknown server may reject unknown fields.
    prompt_defaults: Json = {}  # noqa: RUF012 - never changed

    def __init__(self, client: ServiceClient, name: str) -> None:
        self._client = client
        self._name = name

    async def send(self, operation: Operation, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        encoded = msgspec.json.encode(body | {"model": self._name})
        url = self._client.openai_url(OPENAI_PATHS[operation][0])
        if not body.get("stream"):
            return require_object(await self._client.post(url, encoded, headers))
        response = await self._client.stream(url, encoded, headers)
        return _objects(response) if isinstance(response, AsyncGenerator) else require_object(response)

    async def remaining_tokens(self, _prompt: str, _headers: Headers) -> int | None:
        return None


async def _read(stream: AsyncGenerator[bytes]) -> bytes:
    chunks, size = [], 0
    async with aclosing(stream):
        async for chunk in stream:
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise GatewayError("The target's response is too long.")
            chunks.append(chunk)
    return b"".join(chunks)


async def _objects(events: AsyncGenerator[Any]) -> AsyncGenerator[Json]:  # Any: JSON values
    async with aclosing(events):
        async for event in events:
            yield require_object(event)
