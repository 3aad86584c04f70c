"""Services with JSON of their own: a Jinja template makes the request, JMESPaths read the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from appliance.adapters.http_client import Headers, ServiceClient
from appliance.adapters.jinja import JsonTemplate
from appliance.adapters.jmespath import JmesPath
from appliance.adapters.messages import Json, with_texts
from appliance.adapters.openai_responses import AdapterUsage, GeneratedText
from appliance.adapters.renderer import Renderer
from appliance.adapters.requests import EmbeddingRequest, RerankRequest
from appliance.adapters.sandbox import TemplateFaultError
from appliance.config.adapters import (
    HttpEmbeddingsConfig,
    HttpRequestConfig,
    HttpRerankConfig,
    HttpTextConfig,
    UsageConfig,
)
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import Operation

# Words of services for an answer that was cut: TGI's, Ollama's, Anthropic's, Gemini's.
_CUT = ("length", "max")


def text_variables(body: Json, prompt: str, model: str) -> Json:
    """What the template of a request for text can use."""
    made: Json = {"stop": [], "tools": None} | _given(body) | {"request": body, "prompt": prompt, "model": model}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return made | {"stream": bool(body.get("stream"))} | ({} if limit is None else {"max_tokens": limit})


def embedding_variables(body: Json, texts: Sequence[str], model: str) -> Json:
    """What the template of a request for embeddings can use."""
    return _given(body) | {"request": body, "texts": list(texts), "model": model}


def rerank_variables(request: RerankRequest, model: str) -> Json:
    """What the template of a request for a ranking can use."""
    known = {"query": request.query, "documents": list(request.documents), "model": model}
    return _given(request.body) | {"request": request.body} | known


def _given(body: Json) -> Json:
    """What the client says; null is what it leaves out, so that the template's defaults stand in for it."""
    return {name: value for name, value in body.items() if value is not None}


def smallest(operation: Operation) -> Json:
    """The variables of the smallest request there is for an operation; a template must cope with it."""
    match operation:
        case Operation.EMBEDDING:
            return embedding_variables({"input": "Hello"}, ["Hello"], "model")
        case Operation.RERANK:
            return rerank_variables(RerankRequest.of({"query": "Hello", "documents": ["Hello"]}), "model")
        case Operation.CHAT_COMPLETION:
            return text_variables({"messages": [{"role": "user", "content": "Hello"}]}, "Hello", "model")
        case _:
            return text_variables({"prompt": "Hello"}, "Hello", "model")


class _Exchange:
    """One kind of request to a service."""

    def __init__(self, config: HttpRequestConfig, wire: ServiceClient, renderer: Renderer) -> None:
        self._template = JsonTemplate(config.request, renderer)
        self._usage = _Tokens(config.usage)
        self._wire = wire
        self._url = wire.under(config.path)

    async def _asked(self, variables: Json, headers: Headers) -> Any:  # Any: JSON values
        return await self._wire.post(self._url, await self._rendered(variables), headers)

    async def _rendered(self, variables: Json) -> bytes:
        try:
            return await self._template.run(self._template.render, variables)
        except TemplateFaultError as error:
            raise RequestError(f"The request template of this model {error}") from error


class HttpWriter(_Exchange):
    """A service that writes text."""

    def __init__(self, config: HttpTextConfig, wire: ServiceClient, model: str, renderer: Renderer) -> None:
        super().__init__(config, wire, renderer)
        self._model = model
        self._response = JmesPath(config.response)
        self._reason = None if config.finish_reason is None else JmesPath(config.finish_reason)
        self._piece = None if config.stream is None else JmesPath(config.stream)
        self._stream_url = self._url if config.stream_path is None else wire.under(config.stream_path)
        self._knows_tools = bool({"tools", "request"} & self._template.variables)

    async def write(self, body: Json, prompt: str, headers: Headers) -> GeneratedText:
        self._require_tools(body)
        variables = self._variables(body, prompt) | {"stream": False}
        answer = await self._asked(variables, headers)
        # In a thread, as everywhere that a whole answer is read: it may be large.
        return await asyncio.to_thread(self._text_of, answer)

    async def stream(self, body: Json, prompt: str, headers: Headers) -> AsyncGenerator[GeneratedText]:
        if self._piece is None:
            yield await self.write(body, prompt, headers)
            return
        self._require_tools(body)
        sent = await self._rendered(self._variables(body, prompt))
        last = AdapterUsage()
        async with aclosing(await self._wire.lines(self._stream_url, sent, headers)) as events:
            async for event in events:
                # The counts are of all so far, where a service tells them more than once.
                last = self._usage.of(event) if self._usage.of(event).is_told else last
                # The first and the last event often have no text.
                text = "" if self._piece.find(event) is None else self._piece.text(event)
                yield GeneratedText(text, self._reason_in(event))
        yield GeneratedText("", None, last)

    def _text_of(self, answer: Any) -> GeneratedText:  # Any: JSON values
        return GeneratedText(self._response.text(answer), self._reason_in(answer) or "stop", self._usage.of(answer))

    def _variables(self, body: Json, prompt: str) -> Json:
        variables = text_variables(body, prompt, self._model)
        if "messages" not in self._template.variables:
            return variables
        # Services of their own take a text; a template that can do more reads `request.messages`.
        return variables | {"messages": with_texts(body.get("messages"))}

    def _reason_in(self, answer: Any) -> str | None:  # Any: JSON values
        """Why it ended in OpenAI's words; None where it goes on."""
        found = None if self._reason is None else self._reason.find(answer)
        if not isinstance(found, str) or not found:
            return None
        return "length" if any(word in found.lower() for word in _CUT) else "stop"

    def _require_tools(self, body: Json) -> None:
        if body.get("tools") and body.get("tool_choice") != "none" and not self._knows_tools:
            raise RequestError(
                "The request template of this model has no place for tools; leave tools out, or send tool_choice: none",
                param="tools",
                code="unsupported_parameter",
            )


class HttpEmbedder(_Exchange):
    """A service that makes vectors."""

    def __init__(self, config: HttpEmbeddingsConfig, wire: ServiceClient, model: str, renderer: Renderer) -> None:
        super().__init__(config, wire, renderer)
        self._model = model
        self._response = JmesPath(config.response)

    async def embed(
        self, request: EmbeddingRequest, texts: Sequence[str], headers: Headers
    ) -> tuple[list[list[float]], AdapterUsage]:
        """A vector for each of the texts.

        Raises:
            RequestError: the target refuses.
            GatewayError: it does not answer, or not with vectors.
        """
        answer = await self._asked(embedding_variables(request.body, texts, self._model), headers)
        vectors = await asyncio.to_thread(self._response.vectors, answer)
        if len(vectors) != len(texts):
            raise GatewayError(f"The target gave {len(vectors)} vectors for {len(texts)} texts")
        return vectors, self._usage.of(answer)


class HttpRanker(_Exchange):
    """A service that scores documents."""

    def __init__(self, config: HttpRerankConfig, wire: ServiceClient, model: str, renderer: Renderer) -> None:
        super().__init__(config, wire, renderer)
        self._model = model
        self._response = JmesPath(config.response)

    async def score(self, request: RerankRequest, headers: Headers) -> tuple[list[float], AdapterUsage]:
        """A score for each of the documents.

        Raises:
            RequestError: the target refuses.
            GatewayError: it does not answer, or not with scores.
        """
        answer = await self._asked(rerank_variables(request, self._model), headers)
        return await asyncio.to_thread(self._response.scores, answer), self._usage.of(answer)


class _Tokens:
    """Where a service tells its tokens."""

    def __init__(self, config: UsageConfig) -> None:
        self._prompt = None if config.prompt_tokens is None else JmesPath(config.prompt_tokens)
        self._answer = None if config.completion_tokens is None else JmesPath(config.completion_tokens)

    def of(self, answer: Any) -> AdapterUsage:  # Any: JSON values
        prompt, written = (0 if path is None else path.count(answer) for path in (self._prompt, self._answer))
        return AdapterUsage(prompt, written)
