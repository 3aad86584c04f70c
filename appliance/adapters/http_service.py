"""Services with JSON of their own: a Jinja template writes the request, JMESPaths read the response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from appliance.adapters.chat_request import text_messages
from appliance.adapters.jmespath import JmesPath
from appliance.adapters.service import EmbeddingRequest, GeneratedText, RerankRequest, TokenCounts
from appliance.adapters.service_client import Headers, ServiceClient
from appliance.adapters.templates import JsonTemplate, TemplateFaultError, TemplateRenderer
from appliance.config.adapters import (
    HttpEmbeddingsConfig,
    HttpRerankConfig,
    HttpTextConfig,
    UsageConfig,
)
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import Operation
from appliance.core.openai_types import SMALLEST_REQUESTS, Json

# Words of services for a text that was cut off: TGI's, Ollama's, Anthropic's, Gemini's.
_LENGTH_REASONS = ("length", "max")


def text_variables(body: Json, prompt: str, model: str) -> Json:
    """Return the variables of the template of a request for text."""
    variables: Json = {"stop": [], "tools": None} | _given(body) | {"request": body, "prompt": prompt, "model": model}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return variables | {"stream": bool(body.get("stream"))} | ({} if limit is None else {"max_tokens": limit})


def embedding_variables(body: Json, texts: Sequence[str], model: str) -> Json:
    """Return the variables of the template of a request for embeddings."""
    return _given(body) | {"request": body, "texts": list(texts), "model": model}


def rerank_variables(request: RerankRequest, model: str) -> Json:
    """Return the variables of the template of a rerank request."""
    fields = {"query": request.query, "documents": list(request.documents), "model": model}
    return _given(request.body) | {"request": request.body} | fields


def _given(body: Json) -> Json:
    """Return the fields that are not null, so that the template's defaults apply to the others."""
    return {name: value for name, value in body.items() if value is not None}


def smallest_variables(operation: Operation) -> Json:
    """Return the variables of the smallest possible request for an operation, which any template must render."""
    # A client need not send these two.
    body = {k: v for k, v in SMALLEST_REQUESTS[operation].items() if k not in ("max_tokens", "temperature")}
    match operation:
        case Operation.EMBEDDING:
            return embedding_variables(body, [body["input"]], "model")
        case Operation.RERANK:
            return rerank_variables(RerankRequest.of(body), "model")
        case _:
            return text_variables(body, "Hello", "model")


class _HttpService:
    """One kind of request to a service; `model` is the service's name of the model."""

    def __init__(
        self,
        config: HttpTextConfig | HttpEmbeddingsConfig | HttpRerankConfig,
        client: ServiceClient,
        model: str,
        renderer: TemplateRenderer,
    ) -> None:
        self._template = JsonTemplate(config.request, renderer)
        self._response = JmesPath(config.response)
        self._tokens = _TokenPaths(config.usage)
        self._client = client
        self._model = model
        self._url = client.url(config.path)

    async def _send(self, variables: Json, headers: Headers) -> Any:  # Any: JSON values
        return await self._client.post(self._url, await self._render(variables), headers)

    async def _render(self, variables: Json) -> bytes:
        try:
            return await self._template.run(self._template.render, variables)
        except TemplateFaultError as error:
            raise RequestError(f"The request template of this model {error}") from error


class HttpTextService(_HttpService):
    """A service that generates text."""

    def __init__(self, config: HttpTextConfig, client: ServiceClient, model: str, renderer: TemplateRenderer) -> None:
        super().__init__(config, client, model, renderer)
        self._finish_reason = None if config.finish_reason is None else JmesPath(config.finish_reason)
        self._piece = None if config.stream is None else JmesPath(config.stream)
        self._stream_url = self._url if config.stream_path is None else client.url(config.stream_path)
        self._has_tools = bool({"tools", "request"} & self._template.variables)

    async def generate(self, body: Json, prompt: str, headers: Headers) -> GeneratedText:
        self._require_tools(body)
        response = await self._send(self._variables(body, prompt) | {"stream": False}, headers)
        # In a thread: the response may be large.
        return await asyncio.to_thread(self._text, response)

    async def stream(self, body: Json, prompt: str, headers: Headers) -> AsyncGenerator[GeneratedText]:
        if self._piece is None:
            yield await self.generate(body, prompt, headers)
            return
        self._require_tools(body)
        rendered = await self._render(self._variables(body, prompt))
        tokens = TokenCounts()
        async with aclosing(await self._client.lines(self._stream_url, rendered, headers)) as events:
            async for event in events:
                # Some services report the tokens so far in every event.
                counts = self._tokens.read(event)
                tokens = counts if counts.is_known else tokens
                # The first and the last event often have no text.
                text = "" if self._piece.find(event) is None else self._piece.text(event)
                yield GeneratedText(text, self._read_finish_reason(event))
        yield GeneratedText("", None, tokens)

    def _text(self, response: Any) -> GeneratedText:  # Any: JSON values
        reason = self._read_finish_reason(response) or "stop"
        return GeneratedText(self._response.text(response), reason, self._tokens.read(response))

    def _variables(self, body: Json, prompt: str) -> Json:
        variables = text_variables(body, prompt, self._model)
        if "messages" not in self._template.variables:
            return variables
        # Most services take text alone; a template for one that takes more reads `request.messages`.
        return variables | {"messages": text_messages(body.get("messages"))}

    def _read_finish_reason(self, response: Any) -> str | None:  # Any: JSON values
        """Return the finish reason in OpenAI's words; None while the text goes on."""
        found = None if self._finish_reason is None else self._finish_reason.find(response)
        if not isinstance(found, str) or not found:
            return None
        return "length" if any(word in found.lower() for word in _LENGTH_REASONS) else "stop"

    def _require_tools(self, body: Json) -> None:
        if body.get("tools") and body.get("tool_choice") != "none" and not self._has_tools:
            raise RequestError(
                "The request template of this model has no place for tools; leave tools out, or send tool_choice: none",
                param="tools",
                code="unsupported_parameter",
            )


class HttpEmbeddingService(_HttpService):
    """A service that embeds texts."""

    async def embed(
        self, request: EmbeddingRequest, texts: Sequence[str], headers: Headers
    ) -> tuple[list[list[float]], TokenCounts]:
        response = await self._send(embedding_variables(request.body, texts, self._model), headers)
        vectors = await asyncio.to_thread(self._response.vectors, response)
        if len(vectors) != len(texts):
            raise GatewayError(f"The target gave {len(vectors)} vectors for {len(texts)} texts")
        return vectors, self._tokens.read(response)


class HttpRerankService(_HttpService):
    """A service that scores documents."""

    async def score(self, request: RerankRequest, headers: Headers) -> tuple[list[float], TokenCounts]:
        response = await self._send(rerank_variables(request, self._model), headers)
        return await asyncio.to_thread(self._response.scores, response), self._tokens.read(response)


class _TokenPaths:
    """The paths of the token counts in a response."""

    def __init__(self, config: UsageConfig) -> None:
        self._prompt = None if config.prompt_tokens is None else JmesPath(config.prompt_tokens)
        self._completion = None if config.completion_tokens is None else JmesPath(config.completion_tokens)

    def read(self, response: Any) -> TokenCounts:  # Any: JSON values
        counts = (0 if path is None else path.count(response) for path in (self._prompt, self._completion))
        return TokenCounts(*counts)
