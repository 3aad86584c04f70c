"""The interface of a service without OpenAI's protocol: the requests it can serve, and its results.

Source: https://platform.openai.com/docs/api-reference/completions/create and .../embeddings/create; rerank is Cohere's
and Jina's, https://docs.cohere.com/reference/rerank and https://api.jina.ai/redoc.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from appliance.adapters.service_client import Headers
from appliance.core.errors import RequestError
from appliance.core.openai_types import Json
from appliance.limits.queue import require_size


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request for text: each prompt is continued `n` times."""

    body: Json
    prompts: Sequence[str]
    n: int
    stop: Sequence[str]
    is_streamed: bool
    has_usage: bool
    """The last chunk of a stream has the usage."""

    @classmethod
    def of_completion(cls, body: Json) -> Self:
        """Return a completion request."""
        prompts = _texts(body.get("prompt"))
        if not prompts:
            raise RequestError("prompt must be a text, or a list of texts; this model takes no tokens", param="prompt")
        return cls.of(body, prompts)

    @classmethod
    def of(cls, body: Json, prompts: Sequence[str], stop: Sequence[str] = ()) -> Self:
        """Return a request for the continuation of `prompts`; `stop` are stop sequences besides the client's."""
        n = 1 if body.get("n") is None else body["n"]
        if type(n) is not int or n < 1:
            raise RequestError("n must be a whole number of at least 1", param="n")
        require_size(len(prompts), n, field="prompt")
        own = _texts(body.get("stop"))
        if body.get("stop") and not own:
            raise RequestError("stop must be a text, or a list of texts", param="stop")
        options = body.get("stream_options")
        has_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return cls(body, prompts, n, [each for each in (*own, *stop) if each], bool(body.get("stream")), has_usage)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request for the vectors of texts."""

    body: Json
    texts: Sequence[str]
    is_base64: bool
    dimensions: int | None

    @classmethod
    def of(cls, body: Json) -> Self:
        """Return the request of a body."""
        texts = _texts(body.get("input"))
        if not texts:
            raise RequestError("input must be a text, or a list of texts; this model takes no tokens", param="input")
        require_size(len(texts), 1, field="input")
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise RequestError("encoding_format must be float or base64", param="encoding_format")
        dimensions = body.get("dimensions")
        if dimensions is not None and type(dimensions) is not int:
            raise RequestError("dimensions must be a whole number", param="dimensions")
        return cls(body, texts, encoding == "base64", dimensions)


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A request to order documents by their relevance to the query; a `top_n` of None is all of them."""

    body: Json
    query: str
    documents: Sequence[str]
    top_n: int | None
    returns_documents: bool

    @classmethod
    def of(cls, body: Json) -> Self:
        """Return the request of a body."""
        query = body.get("query")
        if not isinstance(query, str):
            raise RequestError("query must be a text", param="query")
        documents = body.get("documents")
        if isinstance(documents, list):
            documents = [each.get("text") if isinstance(each, dict) else each for each in documents]
        texts = _texts(documents) if isinstance(documents, list) else []
        if not texts:
            raise RequestError("documents must be a list of texts, or of mappings with a text", param="documents")
        require_size(len(texts), 1, field="documents")
        top_n = body.get("top_n") or None
        if top_n is not None and (type(top_n) is not int or top_n < 0):
            raise RequestError("top_n must be a whole number", param="top_n")
        return cls(body, query, texts, top_n, body.get("return_documents") is not False)


def _texts(value: Any) -> list[str]:  # Any: JSON values
    """Return one text or several as a list, which is empty if the value is neither."""
    if isinstance(value, str):
        return [value]
    is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if is_list else []


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens that a service reports; 0 if it does not."""

    prompt: int = 0
    completion: int = 0

    @property
    def is_known(self) -> bool:
        """The service reports tokens."""
        return bool(self.prompt or self.completion)

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.prompt + other.prompt, self.completion + other.completion)


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A text of a service, or a piece of it: `finish_reason` is None while it goes on."""

    text: str
    finish_reason: str | None = None
    tokens: TokenCounts = TokenCounts()


class TextService(Protocol):
    """A service that generates text."""

    async def generate(self, body: Json, prompt: str, headers: Headers) -> GeneratedText:
        """Return the whole text."""

    def stream(self, body: Json, prompt: str, headers: Headers) -> AsyncGenerator[GeneratedText]:
        """Yield the text in pieces."""


class EmbeddingService(Protocol):
    """A service that embeds texts; raises as `TextService`."""

    async def embed(
        self, request: EmbeddingRequest, texts: Sequence[str], headers: Headers
    ) -> tuple[list[list[float]], TokenCounts]:
        """Return a vector for each of `texts`, which are all or some of the request's."""


class RerankService(Protocol):
    """A service that scores documents; raises as `TextService`."""

    async def score(self, request: RerankRequest, headers: Headers) -> tuple[list[float], TokenCounts]:
        """Return a score for each document of the request."""
