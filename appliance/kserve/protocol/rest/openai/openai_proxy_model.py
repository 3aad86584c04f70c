"""KServe's module of this name."""

# ruff: noqa: ARG002 - hooks have the parameters of those that override them

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from appliance.kserve.protocol.rest.openai.openai_model import OpenAIEncoderModel, OpenAIGenerativeModel
from appliance.openai import proxy_model
from appliance.python_api.base_model import overridable, overridden_method
from appliance.python_api.openai_model import Context
from appliance.python_api.raw_request import RawRequest
from appliance.python_api.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionChunk,
    CompletionRequest,
)

__all__ = ["OpenAIProxyModel"]

Chunk = TypeVar("Chunk")

# The hooks of each method.
_HOOKS: Mapping[str, tuple[str, ...]] = {
    "create_completion": (
        "preprocess_completion_request",
        "postprocess_completion",
        "postprocess_completion_chunk",
    ),
    "create_chat_completion": (
        "preprocess_chat_completion_request",
        "postprocess_chat_completion",
        "postprocess_chat_completion_chunk",
    ),
}


class OpenAIProxyModel(OpenAIGenerativeModel, OpenAIEncoderModel, proxy_model.OpenAIProxyModel):
    """Passes requests on; hooks that a class overrides may change requests, responses and chunks in place."""

    def __init__(
        self,
        name: str,
        predictor_url: str | None = None,
        http_client: object = None,
        skip_upstream_validation: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        health_endpoint: str | None = "/v1/models",
        *,
        target_url: str | None = None,
        api_key: str | None = None,
        **keys: Any,  # Any: checked like the file's
    ) -> None:
        """
        `predictor_url` or `target_url` is the URL of a server with OpenAI's protocol, and a third argument that is a
        text its API key. `health_endpoint` is the path of health checks, None for none. Responses are not validated, so
        `skip_upstream_validation` changes nothing. `keys` as in `appliance.openai.OpenAIProxyModel`.

        Raises:
            TypeError: there is no URL, or a client of httpx, which is not used.
            ConfigError: one of the others is wrong.
        """
        if isinstance(http_client, str):
            http_client, api_key = None, http_client
        if http_client is not None:
            raise TypeError("http_client is not used; set keys of the class proxy, such as timeouts={...}")
        url = predictor_url or target_url
        if url is None:
            raise TypeError("predictor_url is missing; give the URL of the server")
        super().__init__(name, url, api_key, **{"health": {"path": health_endpoint}, **keys})
        for method, hooks in _HOOKS.items():
            is_hooked = any(getattr(type(self), hook) is not getattr(OpenAIProxyModel, hook) for hook in hooks)
            if is_hooked and overridden_method(self, method) is None:
                setattr(self, method, _overriding(getattr(self, method)))

    def preprocess_completion_request(self, request: CompletionRequest, raw_request: RawRequest | None = None) -> None:
        """Change a request."""

    def postprocess_completion(
        self, completion: Completion, request: CompletionRequest, raw_request: RawRequest | None = None
    ) -> None:
        """Change a whole response."""

    def postprocess_completion_chunk(
        self, completion: CompletionChunk, request: CompletionRequest, raw_request: RawRequest | None = None
    ) -> None:
        """Change a chunk of a stream."""

    def preprocess_chat_completion_request(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None
    ) -> None:
        """Change a request."""

    def postprocess_chat_completion(
        self, chat_completion: ChatCompletion, request: ChatCompletionRequest, raw_request: RawRequest | None = None
    ) -> None:
        """Change a whole response."""

    def postprocess_chat_completion_chunk(
        self,
        chat_completion_chunk: ChatCompletionChunk,
        request: ChatCompletionRequest,
        raw_request: RawRequest | None = None,
    ) -> None:
        """Change a chunk of a stream."""

    @overridable
    async def create_completion(
        self, request: CompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Completion | AsyncGenerator[CompletionChunk]:
        """Send the request to the server, with its hooks."""
        self.preprocess_completion_request(request, raw_request)
        response = await super().create_completion(request, raw_request, context)
        if not isinstance(response, Completion):
            return _hooked(response, lambda chunk: self.postprocess_completion_chunk(chunk, request, raw_request))
        self.postprocess_completion(response, request, raw_request)
        return response

    @overridable
    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk]:
        """Send the request to the server, with its hooks."""
        self.preprocess_chat_completion_request(request, raw_request)
        response = await super().create_chat_completion(request, raw_request, context)
        if not isinstance(response, ChatCompletion):
            return _hooked(response, lambda chunk: self.postprocess_chat_completion_chunk(chunk, request, raw_request))
        self.postprocess_chat_completion(response, request, raw_request)
        return response


async def _hooked(chunks: AsyncGenerator[Chunk], hook: Callable[[Chunk], None]) -> AsyncGenerator[Chunk]:
    async with aclosing(chunks):
        async for chunk in chunks:
            hook(chunk)
            yield chunk


def _overriding(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a default method as one that counts as overridden, so that requests are not passed on as they are."""

    async def send(*args: Any, **keywords: Any) -> Any:
        return await method(*args, **keywords)

    return send
