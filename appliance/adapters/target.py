"""What an adapter of completions asks: a model of the same file, or a server elsewhere with OpenAI's protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from appliance.adapters.http_client import LONGEST_BYTES, Headers, ServiceClient, decoded, events, object_of
from appliance.adapters.messages import Json
from appliance.core import sse
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import OPENAI_PATHS, ModelRequest, Operation, Peers


class Target(Protocol):
    """Answers OpenAI's requests in JSON."""

    of_prompts: Json
    """Fields of a request whose prompt a template made, unless somebody sets them."""

    async def ask(self, operation: Operation, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """The answer, or its chunks where the body asks for a stream and the target has one.

        Raises:
            RequestError: the target refuses.
            GatewayError: it does not answer.
        """

    async def room(self, prompt: str, headers: Headers) -> int | None:
        """Tokens the context has left after the prompt; None where nobody can tell."""


class PeerTarget:
    """A model of the same file."""

    # It speaks vLLM's dialect, and the template has put special tokens where they belong.
    of_prompts: Json = {"add_special_tokens": False}  # noqa: RUF012 - nobody writes to it

    def __init__(self, name: str, peers: Peers) -> None:
        self._name = name
        self._peers = peers

    async def ask(self, operation: Operation, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        sent = msgspec.json.encode(body | {"model": self._name})
        reply = await self._peers.handle(self._name, ModelRequest(operation, sent, headers))
        if isinstance(reply.body, bytes):
            return object_of(decoded(reply.status, reply.body))
        if reply.status < 300 and reply.media_type.startswith(sse.MEDIA_TYPE):
            return _objects(events(reply.body, is_sse=True))
        # A proxy passes on as a stream what it does not know.
        return object_of(decoded(reply.status, await _whole(reply.body)))

    async def room(self, prompt: str, headers: Headers) -> int | None:
        if Operation.TOKENIZE not in self._peers.operations(self._name):
            return None
        try:
            counted = await self.ask(Operation.TOKENIZE, self.of_prompts | {"prompt": prompt}, headers)
        except RequestError:
            # Behind a proxy there may be nobody who counts.
            return None
        if not isinstance(counted, dict):
            return None
        longest, count = counted.get("max_model_len"), counted.get("count")
        return max(1, longest - count) if isinstance(longest, int) and isinstance(count, int) else None


class RemoteTarget:
    """A server elsewhere; `name` is what it knows the model by."""

    # A stranger may refuse what it does not know.
    of_prompts: Json = {}  # noqa: RUF012 - nobody writes to it

    def __init__(self, wire: ServiceClient, name: str) -> None:
        self._wire = wire
        self._name = name

    async def ask(self, operation: Operation, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        sent = msgspec.json.encode(body | {"model": self._name})
        url = self._wire.route(OPENAI_PATHS[operation][0])
        if not body.get("stream"):
            return object_of(await self._wire.post(url, sent, headers))
        said = await self._wire.stream(url, sent, headers)
        return _objects(said) if isinstance(said, AsyncGenerator) else object_of(said)

    async def room(self, _prompt: str, _headers: Headers) -> int | None:
        return None


async def _whole(stream: AsyncGenerator[bytes]) -> bytes:
    chunks, size = [], 0
    async with aclosing(stream):
        async for chunk in stream:
            size += len(chunk)
            if size > LONGEST_BYTES:
                raise GatewayError("The target's answer is too long.")
            chunks.append(chunk)
    return b"".join(chunks)


async def _objects(said: AsyncGenerator[Any]) -> AsyncGenerator[Json]:  # Any: JSON values
    async with aclosing(said):
        async for event in said:
            yield object_of(event)
