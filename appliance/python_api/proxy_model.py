"""A model that a server elsewhere computes, from Python: the class `proxy` of a file, with methods to override."""

# ruff: noqa: ARG002 - a method takes what the ones that override it are given

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel

from appliance.config.models import ProxyConfig
from appliance.core.model import Operation
from appliance.models.proxy import ProxyModel
from appliance.python_api.arguments import checked
from appliance.python_api.base_model import offered
from appliance.python_api.client import asked, body_of, chunks, made
from appliance.python_api.openai_model import Context, OpenAIEncoderModel, OpenAIGenerativeModel, RawRequest
from appliance.python_api.request_types import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    Request,
    RerankRequest,
)
from appliance.python_api.response_types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Embedding,
    Rerank,
)

Whole = TypeVar("Whole", bound=BaseModel)
Chunk = TypeVar("Chunk", bound=BaseModel)


class OpenAIProxyModel(OpenAIGenerativeModel, OpenAIEncoderModel):
    """Passes on, byte by byte, whatever its class does not answer itself.

    Override a method to change requests and answers on their way: `await super().create_chat_completion(...)` asks the
    upstream, and raises a `CallError` where it refuses.
    """

    # Its health says whether it answers; a request would cost somebody money.
    warmup_request = None

    def __init__(
        self,
        name: str,
        target_url: str,
        api_key: str | None = None,
        *,
        model: str | None = None,
        **keys: Any,  # Any: checked like the file's
    ) -> None:
        """
        `target_url` and `api_key` are those of a server with OpenAI's protocol, `model` what it calls the model, where
        that is another name, and `keys` any other key of the class `proxy`; see `appliance schema proxy`.

        Raises:
            ConfigError: one of them is wrong.
        """
        super().__init__(name)
        upstreams = [{"url": target_url, "api_key": api_key, "model": model}]
        config = {"upstreams": upstreams, **keys, "name": name, "class": "proxy"}
        self._proxy = self.backing = ProxyModel(checked(ProxyConfig, config, type(self).__name__))

    @offered
    async def create_completion(
        self, request: CompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Completion | AsyncGenerator[CompletionChunk]:
        """What the upstream completes."""
        return await self._asked(Operation.COMPLETION, request, raw_request, Completion, CompletionChunk)

    @offered
    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk]:
        """What the upstream answers a conversation with."""
        return await self._asked(Operation.CHAT_COMPLETION, request, raw_request, ChatCompletion, ChatCompletionChunk)

    @offered
    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Embedding:
        """The upstream's vectors."""
        return await self._whole(Operation.EMBEDDING, request, raw_request, Embedding)

    @offered
    async def create_rerank(
        self, request: RerankRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Rerank:
        """The upstream's ranking."""
        return await self._whole(Operation.RERANK, request, raw_request, Rerank)

    async def _asked(
        self,
        operation: Operation,
        request: Request,
        raw_request: RawRequest | None,
        whole: type[Whole],
        chunk: type[Chunk],
    ) -> Whole | AsyncGenerator[Chunk]:
        said = await asked(self._proxy, operation, body_of(request, self.name), raw_request)
        return made(whole, said) if isinstance(said, dict) else chunks(said, chunk)

    async def _whole(
        self, operation: Operation, request: Request, raw_request: RawRequest | None, whole: type[Whole]
    ) -> Whole:
        return made(whole, await asked(self._proxy, operation, body_of(request, self.name), raw_request))
