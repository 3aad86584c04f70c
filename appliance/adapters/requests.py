"""OpenAI's requests for completions, embeddings and rankings, as far as a target without its protocol can serve them.

Source: https://platform.openai.com/docs/api-reference/completions/create and .../embeddings/create;
rerank is Cohere's and Jina's, https://docs.cohere.com/reference/rerank and https://api.jina.ai/redoc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.adapters.messages import Json
from appliance.core.errors import RequestError
from appliance.limits import require_size


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request for text: each prompt is continued `n` times."""

    body: Json
    prompts: Sequence[str]
    n: int
    stop: Sequence[str]
    is_streamed: bool
    wants_usage: bool
    """The last chunk of a stream is to have the usage."""

    @classmethod
    def of(cls, body: Json) -> TextRequest:
        """Raises:
        RequestError: the body is not such a request.
        """
        prompts = _texts(body.get("prompt"))
        if not prompts:
            raise RequestError("prompt must be a text, or a list of texts; this model takes no tokens", param="prompt")
        return cls.with_prompts(body, prompts)

    @classmethod
    def with_prompts(cls, body: Json, prompts: Sequence[str], always: Sequence[str] = ()) -> TextRequest:
        """The same for prompts that come from elsewhere; `always` are stop texts besides the client's.

        Raises:
            RequestError: the body is not such a request.
        """
        n = 1 if body.get("n") is None else body["n"]
        if type(n) is not int or n < 1:
            raise RequestError("n must be a whole number from 1 on", param="n")
        require_size(len(prompts), n, field="prompt")
        stop = _texts(body.get("stop"))
        if body.get("stop") and not stop:
            raise RequestError("stop must be a text, or a list of texts", param="stop")
        options = body.get("stream_options")
        wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return cls(body, prompts, n, [each for each in (*stop, *always) if each], bool(body.get("stream")), wants_usage)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts whose vectors are wanted."""

    body: Json
    texts: Sequence[str]
    is_base64: bool
    dimensions: int | None

    @classmethod
    def of(cls, body: Json) -> EmbeddingRequest:
        """Raises:
        RequestError: the body is not such a request.
        """
        texts = _texts(body.get("input"))
        if not texts:
            raise RequestError("input must be a text, or a list of texts; this model takes no tokens", param="input")
        require_size(len(texts), 1, field="input")
        form = body.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise RequestError("encoding_format must be float or base64", param="encoding_format")
        dimensions = body.get("dimensions")
        if dimensions is not None and type(dimensions) is not int:
            raise RequestError("dimensions must be a whole number", param="dimensions")
        return cls(body, texts, form == "base64", dimensions)


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """Documents to be put in the order of what they say about the query; `top_n` of None is all of them."""

    body: Json
    query: str
    documents: Sequence[str]
    top_n: int | None
    returns_documents: bool

    @classmethod
    def of(cls, body: Json) -> RerankRequest:
        """Raises:
        RequestError: the body is not such a request.
        """
        query = body.get("query")
        if not isinstance(query, str):
            raise RequestError("query must be a text", param="query")
        given = body.get("documents")
        texts = _texts([_document(each) for each in given] if isinstance(given, list) else None)
        if not texts:
            raise RequestError("documents must be a list of texts, or of mappings with a text", param="documents")
        require_size(len(texts), 1, field="documents")
        top_n = body.get("top_n") or None
        if top_n is not None and (type(top_n) is not int or top_n < 0):
            raise RequestError("top_n must be a whole number", param="top_n")
        return cls(body, query, texts, top_n, body.get("return_documents") is not False)


def _document(given: Any) -> Any:  # Any: JSON values
    return given.get("text") if isinstance(given, dict) else given


def _texts(value: Any) -> list[str]:  # Any: JSON values
    """One text or several as a list, which is empty where the value is neither."""
    if isinstance(value, str):
        return [value]
    is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if is_list else []
