"""Services with JSON of their own: a Jinja template writes the request, JMESPaths read the response."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, LexerError, ParseError
from jmespath.functions import Functions

from appliance.adapters.chat_request import text_messages
from appliance.adapters.operations import GeneratedText, TokenCounts
from appliance.adapters.renderer import Renderer
from appliance.adapters.service_client import Headers, ServiceClient
from appliance.adapters.templates import JsonTemplate, TemplateFaultError
from appliance.config.adapters import HttpEmbeddingsConfig, HttpRerankConfig, HttpTextConfig
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import Operation
from appliance.core.openai_types import SMALLEST_REQUESTS, Json
from appliance.core.suggestions import did_you_mean, known_names

# Words of services for a text that was cut off: TGI's, Ollama's, Anthropic's, Gemini's.
_LENGTH_REASONS = ("length", "max")


class PathFaultError(Exception):
    """A path is wrong; `offset` of it counts from 0."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class JmesPath:
    """A path into a JSON response (https://jmespath.org/specification.html).

    Raises:
        PathFaultError: it is not a JMESPath.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        try:
            self._path = jmespath.compile(source)
        except LexerError as error:
            message = str(error.message)
            raise PathFaultError(f"{message[:1].lower()}{message[1:]}", error.lexer_position) from error
        except ParseError as error:
            if error.token_value is None:
                raise PathFaultError("ends too early", len(source)) from error
            raise PathFaultError(f"has {error.token_value!r} in a wrong place", error.lex_position) from error
        except JMESPathError as error:
            raise PathFaultError("is empty") from error
        except ValueError as error:
            raise PathFaultError("has a number of too many digits") from error
        except RecursionError as error:
            raise PathFaultError("is nested too deeply") from error
        _require_known_functions(self._path.parsed, source)

    def find(self, response: Any) -> Any:  # Any: JSON values
        """Return the value at the path, or None."""
        try:
            return self._path.search(response)
        except (JMESPathError, RecursionError) as error:
            # The library's message would quote the response.
            raise GatewayError(
                f"The target's response does not fit the functions of the path {self._source!r}"
            ) from error

    def text(self, response: Any) -> str:  # Any: JSON values
        """Return the text at the path."""
        found = self.find(response)
        if not isinstance(found, str):
            raise self._mismatch(found, "a text")
        return found

    def count(self, response: Any) -> int:  # Any: JSON values
        """Return the whole number at the path; 0 if there is none."""
        found = self.find(response)
        return int(found) if _is_number(found) else 0

    def scores(self, response: Any) -> list[float]:  # Any: JSON values
        """Return the list of numbers at the path."""
        found = self.find(response)
        if not _are_numbers(found):
            raise self._mismatch(found, "a list of numbers")
        return [float(number) for number in found]

    def vectors(self, response: Any) -> list[list[float]]:  # Any: JSON values
        """Return the list of vectors at the path; one vector alone is a list of one."""
        found = self.find(response)
        vectors = [found] if _are_numbers(found) else found
        if not isinstance(vectors, list) or not vectors or not all(map(_are_numbers, vectors)):
            raise self._mismatch(found, "a list of vectors")
        return [[float(number) for number in vector] for vector in vectors]

    def _mismatch(self, found: Any, expected: str) -> GatewayError:  # Any: JSON values
        names = {dict: "a mapping", list: "another list", str: "a text", bool: "true or false"}
        kind = "nothing" if found is None else names.get(type(found), "a number")
        return GatewayError(f"The target's response has {kind} at {self._source!r}, where {expected} must be")


def _require_known_functions(node: Any, source: str) -> None:  # Any: a node of the library's tree
    """Reject unknown functions, which the library only notices when it calls them."""
    if not isinstance(node, dict):
        return
    if node.get("type") == "function_expression" and node["value"] not in Functions.FUNCTION_TABLE:
        name = node["value"]
        hint = did_you_mean(name, Functions.FUNCTION_TABLE) or known_names("functions", Functions.FUNCTION_TABLE)
        raise PathFaultError(f"has an unknown function {name}; {hint}", source.find(name))
    for child in node.get("children", ()):
        _require_known_functions(child, source)


def _are_numbers(value: Any) -> bool:  # Any: JSON values
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:  # Any: JSON values
    """Return whether JSON can hold the number: Python's has infinities, and whole numbers of any size."""
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is float and math.isfinite(value)


def text_variables(body: Json, prompt: str, model: str) -> Json:
    """Return the variables of the template of a request for text."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    fields = {"request": body, "prompt": prompt, "model": model, "stream": bool(body.get("stream"))}
    return {"stop": [], "tools": None} | _given(body) | fields | ({} if limit is None else {"max_tokens": limit})


def embedding_variables(body: Json, texts: Sequence[str], model: str) -> Json:
    """Return the variables of the template of a request for embeddings."""
    return _given(body) | {"request": body, "texts": list(texts), "model": model}


def rerank_variables(body: Json, query: str, documents: Sequence[str], model: str) -> Json:
    """Return the variables of the template of a rerank request."""
    return _given(body) | {"request": body, "query": query, "documents": list(documents), "model": model}


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
            return rerank_variables(body, body["query"], body["documents"], "model")
        case _:
            return text_variables(body, "Hello", "model")


class HttpService:
    """A service that embeds texts or scores documents; `model` is the service's name of the model."""

    def __init__(
        self,
        client: ServiceClient,
        model: str,
        renderer: Renderer,
        config: HttpTextConfig | HttpEmbeddingsConfig | HttpRerankConfig,
    ) -> None:
        self._template = JsonTemplate(config.request, renderer)
        self._response = JmesPath(config.response)
        self._prompt_tokens = _optional_path(config.usage.prompt_tokens)
        self._completion_tokens = _optional_path(config.usage.completion_tokens)
        self._client = client
        self._model = model
        self._url = client.url(config.path)

    async def embed(self, body: Json, texts: Sequence[str], headers: Headers) -> tuple[list[list[float]], TokenCounts]:
        response = await self._send(embedding_variables(body, texts, self._model), headers)
        vectors = await asyncio.to_thread(self._response.vectors, response)
        if len(vectors) != len(texts):
            raise GatewayError(f"The target gave {len(vectors)} vectors for {len(texts)} texts")
        return vectors, self._tokens(response)

    async def score(
        self, body: Json, query: str, documents: Sequence[str], headers: Headers
    ) -> tuple[list[float], TokenCounts]:
        response = await self._send(rerank_variables(body, query, documents, self._model), headers)
        return await asyncio.to_thread(self._response.scores, response), self._tokens(response)

    async def _send(self, variables: Json, headers: Headers) -> Any:  # Any: JSON values
        return await self._client.post(self._url, await self._render(variables), headers)

    async def _render(self, variables: Json) -> bytes:
        try:
            return await self._template.run(lambda: self._template.render(variables))
        except TemplateFaultError as error:
            raise RequestError(f"The request template of this model {error}") from error

    def _tokens(self, response: Any) -> TokenCounts:  # Any: JSON values
        paths = (self._prompt_tokens, self._completion_tokens)
        return TokenCounts(*(0 if path is None else path.count(response) for path in paths))


class HttpTextService(HttpService):
    """A service that generates text."""

    def __init__(self, client: ServiceClient, model: str, renderer: Renderer, config: HttpTextConfig) -> None:
        super().__init__(client, model, renderer, config)
        self._finish_reason = _optional_path(config.finish_reason)
        self._piece = _optional_path(config.stream)
        self._stream_url = self._url if config.stream_path is None else client.url(config.stream_path)

    async def generate(self, body: Json, prompt: str, headers: Headers) -> GeneratedText:
        response = await self._send(self._variables(body, prompt) | {"stream": False}, headers)
        # In a thread: the response may be large.
        return await asyncio.to_thread(self._text, response)

    async def stream(self, body: Json, prompt: str, headers: Headers) -> AsyncGenerator[GeneratedText]:
        if self._piece is None:
            yield await self.generate(body, prompt, headers)
            return
        rendered = await self._render(self._variables(body, prompt))
        tokens = TokenCounts()
        # Services have many media types for lines.
        async with aclosing(await self._client.stream(self._stream_url, rendered, headers, has_lines=True)) as events:
            async for event in events:
                # Some services report the tokens so far in every event.
                counts = self._tokens(event)
                tokens = counts if any(counts) else tokens
                # The first and the last event often have no text.
                text = "" if self._piece.find(event) is None else self._piece.text(event)
                yield GeneratedText(text, self._read_finish_reason(event))
        yield GeneratedText("", None, tokens)

    def _variables(self, body: Json, prompt: str) -> Json:
        used = self._template.variables
        if body.get("tools") and body.get("tool_choice") != "none" and not {"tools", "request"} & used:
            raise RequestError(
                "The request template of this model has no place for tools; leave tools out, or send tool_choice: none",
                param="tools",
                code="unsupported_parameter",
            )
        # Most services take text alone; a template for one that takes more reads `request.messages`.
        messages = {"messages": text_messages(body.get("messages"))} if "messages" in used else {}
        return text_variables(body, prompt, self._model) | messages

    def _text(self, response: Any) -> GeneratedText:  # Any: JSON values
        reason = self._read_finish_reason(response) or "stop"
        return GeneratedText(self._response.text(response), reason, self._tokens(response))

    def _read_finish_reason(self, response: Any) -> str | None:  # Any: JSON values
        """Return the finish reason in OpenAI's words; None while the text goes on."""
        found = None if self._finish_reason is None else self._finish_reason.find(response)
        if not isinstance(found, str) or not found:
            return None
        return "length" if any(word in found.lower() for word in _LENGTH_REASONS) else "stop"


def _optional_path(source: str | None) -> JmesPath | None:
    return None if source is None else JmesPath(source)
