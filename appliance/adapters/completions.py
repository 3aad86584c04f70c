"""Chat over a target that completes prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from appliance.adapters.chat_request import ChatRequestBuilder, Prompted
from appliance.adapters.chat_response import ChatResponseBuilder, chat_completion
from appliance.adapters.chat_stream import chat_chunks
from appliance.adapters.http_client import Headers
from appliance.adapters.messages import Json
from appliance.adapters.target import Target
from appliance.config.adapters import CompletionsConfig
from appliance.core.errors import GatewayError
from appliance.core.model import Operation

# OpenAI's completions end after 16 tokens when nobody says otherwise, which no conversation expects.
_DEFAULT_MAX_TOKENS = 1024


class CompletionsAdapter:
    """What is asked under `name`, asked of the target as completions."""

    def __init__(
        self, name: str, config: CompletionsConfig, target: Target, chat: ChatRequestBuilder | Prompted
    ) -> None:
        self._name = name
        self._config = config
        self._target = target
        self._chat = chat

    async def chat(self, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """The chat completion, or its chunks.

        Raises:
            CallError: the request is wrong, or refused.
            GatewayError: the target does not answer, or not with a completion.
        """
        completion = await self._chat.completion_async(body)
        merged = {**self._target.of_prompts, **self._config.defaults, **completion}
        request = {name: value for name, value in merged.items() if value is not None}
        if "max_tokens" not in request:
            request["max_tokens"] = await self._room(completion["prompt"], headers)
        face = ChatResponseBuilder.of(body, self._name, self._config)
        answer = await self._asked(request, headers)
        return chat_completion(answer, face) if isinstance(answer, dict) else chat_chunks(answer, face)

    async def complete(self, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """The completion as the target makes it, or its chunks.

        Raises:
            CallError: the request is refused.
            GatewayError: the target does not answer.
        """
        answer = await self._asked({**self._config.defaults, **body}, headers)
        return answer | {"model": self._name} if isinstance(answer, dict) else _named(answer, self._name)

    async def _asked(self, request: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        answer = await self._target.ask(Operation.COMPLETION, request, headers)
        if request.get("stream"):
            return _pieces(answer) if isinstance(answer, dict) else answer
        if not isinstance(answer, dict):
            await answer.aclose()
            raise GatewayError("The target streams what it was not asked to stream")
        return answer

    async def _room(self, prompt: str, headers: Headers) -> int:
        if self._config.max_tokens is not None:
            return self._config.max_tokens
        return await self._target.room(prompt, headers) or _DEFAULT_MAX_TOKENS


async def _pieces(completion: Json) -> AsyncGenerator[Json]:
    """The chunks of a target that does not stream: one with everything."""
    yield {name: value for name, value in completion.items() if name != "usage"}
    if completion.get("usage"):
        yield {**completion, "choices": []}


async def _named(chunks: AsyncGenerator[Json], name: str) -> AsyncGenerator[Json]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk | {"model": name}
