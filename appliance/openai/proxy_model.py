"""A model computed by a server elsewhere, from Python: the class `proxy` of a file, with methods to override."""

# ruff: noqa: ARG002 - methods have the parameters of those that override them

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel

from appliance.config.models import ProxyConfig
from appliance.core.model import Operation
from appliance.models.proxy import ProxyModel
from appliance.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionChunk,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
    Rerank,
    RerankRequest,
)
from appliance.python_api.base_model import config_from_keywords, overridable
from appliance.python_api.client import request_body, send, to_chunks, to_object
from appliance.python_api.openai_model import Context, OpenAIEncoderModel, OpenAIGenerativeModel, RawRequest
from appliance.python_api.types import Request

Response = TypeVar("Response", bound=BaseModel)
Chunk = TypeVar("Chunk", bound=BaseModel)


class OpenAIProxyModel(OpenAIGenerativeModel, OpenAIEncoderModel):
    """Passes on, byte by byte, the operations whose methods its class does not override.

    Override a method to change requests and responses on their way: `await super().create_chat_completion(...)` sends
    the request to the upstream, and raises a `RequestError` if it rejects the request.
    """

    # Health checks show that the upstream answers; a request would cost money.
    proof = None

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
        `target_url` and `api_key` are those of a server with OpenAI's protocol, `model` its name for the model if that
        is another one, and `keys` any other key of the class `proxy`; see `appliance schema proxy`.

        Raises:
            ConfigError: one of them is wrong.
        """
        super().__init__(name)
        upstreams = [{"url": target_url, "api_key": api_key, "model": model}]
        config = {"upstreams": upstreams, **keys, "name": name, "class": "proxy"}
        self._proxy = self.backing = ProxyModel(config_from_keywords(ProxyConfig, config, type(self).__name__))

    @overridable
    async def create_completion(
        self, request: CompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Completion | AsyncGenerator[CompletionChunk]:
        """Send the request to the upstream."""
        return await self._generate(Operation.COMPLETION, request, raw_request, Completion, CompletionChunk)

    @overridable
    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk]:
        """Send the request to the upstream."""
        return await self._generate(
            Operation.CHAT_COMPLETION, request, raw_request, ChatCompletion, ChatCompletionChunk
        )

    @overridable
    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Embedding:
        """Send the request to the upstream."""
        body = request_body(request, self.name)
        return to_object(await send(self._proxy, Operation.EMBEDDING, body, raw_request), Embedding)

    @overridable
    async def create_rerank(
        self, request: RerankRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Rerank:
        """Send the request to the upstream."""
        body = request_body(request, self.name)
        return to_object(await send(self._proxy, Operation.RERANK, body, raw_request), Rerank)

    async def _generate(
        self,
        operation: Operation,
        request: Request,
        raw_request: RawRequest | None,
        response_class: type[Response],
        chunk_class: type[Chunk],
    ) -> Response | AsyncGenerator[Chunk]:
        response = await send(self._proxy, operation, request_body(request, self.name), raw_request)
        if isinstance(response, dict):
            return to_object(response, response_class)
        return to_chunks(response, chunk_class)
