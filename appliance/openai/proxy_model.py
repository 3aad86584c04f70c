"""A model computed by a server elsewhere, from Python: the class `proxy` of a file, with methods to override."""

# ruff: noqa: ARG002 - methods have the parameters of those that override them

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from appliance.config.models import ProxyConfig
from appliance.core.model import Operation
from appliance.core.openai_types import Json
from appliance.models.proxy import ProxyModel
from appliance.openai import types
from appliance.python_api.base_model import config_from_keywords, overridable
from appliance.python_api.client import request_body, send, to_object, to_objects
from appliance.python_api.openai_model import Context, OpenAIEncoderModel, OpenAIGenerativeModel
from appliance.python_api.raw_request import RawRequest
from appliance.python_api.types import Request


class OpenAIProxyModel(OpenAIGenerativeModel, OpenAIEncoderModel):
    """Passes on, byte by byte, the operations whose methods its class does not override.

    Override a method to change requests and responses on their way: `await super().create_chat_completion(...)` sends
    the request to the upstream, and raises a `RequestError` if it rejects the request.
    """

    # Health checks show that the upstream answers; a request would cost money.
    proof: Mapping[str, Any] | None = None

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
        self, request: types.CompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> types.Completion | AsyncGenerator[types.CompletionChunk]:
        """Send the request to the upstream."""
        response = await self._send(Operation.COMPLETION, request, raw_request)
        return to_objects(response, types.Completion, types.CompletionChunk)

    @overridable
    async def create_chat_completion(
        self,
        request: types.ChatCompletionRequest,
        raw_request: RawRequest | None = None,
        context: Context | None = None,
    ) -> types.ChatCompletion | AsyncGenerator[types.ChatCompletionChunk]:
        """Send the request to the upstream."""
        response = await self._send(Operation.CHAT_COMPLETION, request, raw_request)
        return to_objects(response, types.ChatCompletion, types.ChatCompletionChunk)

    @overridable
    async def create_embedding(
        self, request: types.EmbeddingRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> types.Embedding:
        """Send the request to the upstream."""
        return to_object(await self._send(Operation.EMBEDDING, request, raw_request), types.Embedding)

    @overridable
    async def create_rerank(
        self, request: types.RerankRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> types.Rerank:
        """Send the request to the upstream."""
        return to_object(await self._send(Operation.RERANK, request, raw_request), types.Rerank)

    async def _send(
        self, operation: Operation, request: Request, raw_request: RawRequest | None
    ) -> Json | AsyncGenerator[Json]:
        return await send(self._proxy, operation, request_body(request, self.name), raw_request)
