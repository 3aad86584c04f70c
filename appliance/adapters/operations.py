"""OpenAI's operations over a service without its protocol: texts, vectors and scores become OpenAI's responses.

Source: https://platform.openai.com/docs/api-reference/completions and .../embeddings; rerank is Cohere's and Jina's,
https://docs.cohere.com/reference/rerank and https://api.jina.ai/redoc.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import UNSET

from appliance.adapters.chat_request import ChatRequestBuilder
from appliance.adapters.chat_response import (
    ChatResponseFormat,
    StopSequences,
    chat_chunks,
    chat_completion,
    truncate_at_stop,
)
from appliance.adapters.service_client import Headers
from appliance.config.adapters import ChatConfig
from appliance.core.concurrency import gather_limited, merge_streams
from appliance.core.errors import GatewayError, RequestError
from appliance.core.openai_types import (
    Completion,
    CompletionChoice,
    EmbeddingData,
    Embeddings,
    Json,
    Rerank,
    RerankDocument,
    RerankResult,
    Usage,
    encode_vector,
    new_id,
    now,
)
from appliance.limits.queue import require_size

# Text alone cannot serve these.
_UNSUPPORTED_FIELDS = ("logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix")


class TokenCounts(NamedTuple):
    """Tokens that a service reports; 0 if it does not."""

    prompt: int = 0
    completion: int = 0


_UNKNOWN = TokenCounts()


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A text of a service, or a piece of it: `finish_reason` is None while it goes on."""

    text: str
    finish_reason: str | None = None
    tokens: TokenCounts = _UNKNOWN


class TextService(Protocol):
    """A service that generates text."""

    async def generate(self, body: Json, prompt: str, headers: Headers) -> GeneratedText:
        """Return the whole text."""

    def stream(self, body: Json, prompt: str, headers: Headers) -> AsyncGenerator[GeneratedText]:
        """Yield the text in pieces."""


class EmbeddingService(Protocol):
    """A service that embeds texts; raises as `TextService`."""

    async def embed(self, body: Json, texts: Sequence[str], headers: Headers) -> tuple[list[list[float]], TokenCounts]:
        """Return a vector for each of `texts`, which are all or some of the request's."""


class RerankService(Protocol):
    """A service that scores documents; raises as `TextService`."""

    async def score(
        self, body: Json, query: str, documents: Sequence[str], headers: Headers
    ) -> tuple[list[float], TokenCounts]:
        """Return a score for each of `documents`, which are all or some of the request's."""


async def chat_over_text(
    name: str,
    service: TextService,
    config: ChatConfig,
    chat: ChatRequestBuilder | None,
    body: Json,
    headers: Headers,
) -> Json | AsyncGenerator[Json]:
    """Return the chat completion, or its chunks; `chat` is None if the service takes the messages as they are."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages is missing; it must be a list of one message or more", param="messages")
    fields = body if chat is None else body | await chat.completion(body)
    response = await _generate(name, service, fields, [fields.get("prompt") or ""], config.stop, headers)
    form = ChatResponseFormat.of(body, name, config)
    return chat_completion(response, form) if isinstance(response, dict) else chat_chunks(response, form)


async def complete_over_text(
    name: str, service: TextService, body: Json, headers: Headers
) -> Json | AsyncGenerator[Json]:
    """Return the completion, or its chunks."""
    prompts = _texts(body.get("prompt"))
    if not prompts:
        raise RequestError("prompt must be a text, or a list of texts; this model takes no tokens", param="prompt")
    return await _generate(name, service, body, prompts, (), headers)


async def embed(name: str, service: EmbeddingService, max_batch: int | None, body: Json, headers: Headers) -> Json:
    """Return the embeddings; one request to the service has at most `max_batch` texts."""
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
    results = await gather_limited([partial(service.embed, body, each, headers) for each in _batches(texts, max_batch)])
    vectors = [vector for batch, _ in results for vector in batch]
    _require_vectors(vectors, len(texts), dimensions)
    tokens = _sum(tokens for _, tokens in results)
    data = [
        EmbeddingData(index=index, embedding=_base64(vector) if encoding == "base64" else vector)
        for index, vector in enumerate(vectors)
    ]
    # OpenAI's clients expect a usage, known or not.
    usage = Usage(prompt_tokens=tokens.prompt, total_tokens=tokens.prompt)
    return _encode(Embeddings(model=name, data=data, usage=usage))


async def rerank(name: str, service: RerankService, max_batch: int | None, body: Json, headers: Headers) -> Json:
    """Return the documents, best first; one request to the service has at most `max_batch` of them."""
    query, documents = body.get("query"), body.get("documents")
    if not isinstance(query, str):
        raise RequestError("query must be a text", param="query")
    listed = documents if isinstance(documents, list) else []
    texts = _texts([each.get("text") if isinstance(each, dict) else each for each in listed])
    if not texts:
        raise RequestError("documents must be a list of texts, or of mappings with a text", param="documents")
    require_size(len(texts), 1, field="documents")
    top_n = body.get("top_n") or None
    if top_n is not None and (type(top_n) is not int or top_n < 0):
        raise RequestError("top_n must be a whole number", param="top_n")
    works = [partial(service.score, body, query, each, headers) for each in _batches(texts, max_batch)]
    results = await gather_limited(works)
    scores = [score for batch, _ in results for score in batch]
    if len(scores) != len(texts):
        raise GatewayError(f"The target gave {len(scores)} scores for {len(texts)} documents")
    has_documents = body.get("return_documents") is not False
    best = [
        RerankResult(
            index=index,
            relevance_score=scores[index],
            document=RerankDocument(texts[index]) if has_documents else UNSET,
        )
        for index in sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
    ]
    tokens = _sum(tokens for _, tokens in results)
    usage = Usage(total_tokens=tokens.prompt + tokens.completion)
    return _encode(Rerank(id=new_id("rerank"), model=name, results=best, usage=usage))


async def _generate(
    name: str, service: TextService, body: Json, prompts: Sequence[str], stop: Sequence[str], headers: Headers
) -> Json | AsyncGenerator[Json]:
    """Return the completion, or its chunks; prompts and choices are generated in parallel.

    `stop` are stop sequences besides the client's.
    """
    n = 1 if body.get("n") is None else body["n"]
    if type(n) is not int or n < 1:
        raise RequestError("n must be a whole number of at least 1", param="n")
    require_size(len(prompts), n, field="prompt")
    own = _texts(body.get("stop"))
    if body.get("stop") and not own:
        raise RequestError("stop must be a text, or a list of texts", param="stop")
    for field in _UNSUPPORTED_FIELDS:
        # A `logprobs` of 0 requests one for each token.
        if body.get(field) not in (None, "") and body[field] is not False:
            raise RequestError(f"{field} is not supported by this model", param=field, code="unsupported_parameter")
    stop = [each for each in (*own, *stop) if each]
    repeated = [prompt for prompt in prompts for _ in range(n)]
    if body.get("stream"):
        options = body.get("stream_options")
        has_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        pieces = [_pieces(service.stream(body, prompt, headers), stop) for prompt in repeated]
        return _chunks(name, pieces, has_usage=has_usage)
    texts = await gather_limited([partial(service.generate, body, prompt, headers) for prompt in repeated])
    choices = [_choice(index, text, stop) for index, text in enumerate(texts)]
    tokens = _sum(text.tokens for text in texts)
    return _completion(name, choices, _usage(tokens) if any(tokens) else None)


async def _chunks(
    name: str, streams: Sequence[AsyncGenerator[GeneratedText]], *, has_usage: bool
) -> AsyncGenerator[Json]:
    """Yield the chunks of all choices; with `has_usage`, the last one has the usage."""
    head = _completion(name, [], None if has_usage else UNSET)
    counts = []
    async with aclosing(merge_streams(streams)) as pieces:
        async for index, piece in pieces:
            counts.append(piece.tokens)
            choice = CompletionChoice(index=index, text=piece.text, finish_reason=piece.finish_reason)
            yield head | {"choices": [_encode(choice)]}
    if has_usage:
        yield head | {"usage": _encode(_usage(_sum(counts)))}


async def _pieces(stream: AsyncGenerator[GeneratedText], stop: Sequence[str]) -> AsyncGenerator[GeneratedText]:
    """Yield the pieces of one choice up to a stop sequence; only the last one has a finish reason."""
    stops, reason, counts = StopSequences(stop), "stop", []
    async with aclosing(stream):
        async for piece in stream:
            counts.append(piece.tokens)
            reason = piece.finish_reason or reason
            if text := stops.feed(piece.text):
                yield GeneratedText(text)
            if stops.is_found:
                reason = "stop"
                break
    yield GeneratedText(stops.finish(), reason, _sum(counts))


def _choice(index: int, text: GeneratedText, stop: Sequence[str]) -> CompletionChoice:
    kept = truncate_at_stop(text.text, stop)
    reason = "stop" if kept != text.text else text.finish_reason or "stop"
    return CompletionChoice(index=index, text=kept, finish_reason=reason)


def _completion(name: str, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None) -> Json:
    return _encode(Completion(id=new_id("cmpl"), created=now(), model=name, choices=choices, usage=usage))


def _usage(tokens: TokenCounts) -> Usage:
    return Usage(tokens.prompt, tokens.completion, tokens.prompt + tokens.completion)


def _sum(counts: Iterable[TokenCounts]) -> TokenCounts:
    return TokenCounts(*map(sum, zip(*counts, strict=True)))


def _texts(value: Any) -> list[str]:  # Any: JSON values
    """Return one text or several as a list, which is empty if the value is neither."""
    if isinstance(value, str):
        return [value]
    is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if is_list else []


def _batches(texts: Sequence[str], size: int | None) -> list[Sequence[str]]:
    size = size or len(texts)
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _require_vectors(vectors: Sequence[Sequence[float]], texts: int, dimensions: int | None) -> None:
    """Require one vector for each text, all of the same size, which is that of the request if it has one."""
    if len(vectors) != texts:
        raise GatewayError(f"The target gave {len(vectors)} vectors for {texts} texts")
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        raise GatewayError("The target gave vectors of different lengths")
    if dimensions not in (None, *sizes):
        raise RequestError(
            f"dimensions is {dimensions}, and the vectors of this model have {sizes.pop()}", param="dimensions"
        )


def _base64(vector: Sequence[float]) -> str:
    try:
        return encode_vector(vector)
    except ValueError as error:
        raise GatewayError(f"The target gave a vector that float32 cannot hold: {error}") from error


def _encode(response: msgspec.Struct) -> Json:
    fields: Json = msgspec.to_builtins(response)
    return fields
