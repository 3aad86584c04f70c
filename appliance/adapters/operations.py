"""OpenAI's operations over a service without its protocol: text, vectors and scores become OpenAI's responses.

Source: https://platform.openai.com/docs/api-reference/completions/object and .../embeddings/object; rerank is Cohere's
and Jina's, https://docs.cohere.com/reference/rerank and https://api.jina.ai/redoc.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial, reduce

import msgspec
from msgspec import UNSET

from appliance.adapters.chat_request import ChatRequestBuilder
from appliance.adapters.chat_response import ChatResponseFormat, chat_chunks, chat_completion
from appliance.adapters.http_service import HttpEmbeddingService, HttpRerankService, HttpTextService
from appliance.adapters.oip import OipClient, OipEmbeddingService, OipRerankService, OipTextService
from appliance.adapters.service import (
    EmbeddingRequest,
    EmbeddingService,
    GeneratedText,
    RerankRequest,
    RerankService,
    TextRequest,
    TextService,
    TokenCounts,
)
from appliance.adapters.service_client import Headers, ServiceClient
from appliance.adapters.templates import TemplateRenderer
from appliance.adapters.tool_calls import StopSequences, truncate_at_stop
from appliance.config.adapters import ChatConfig, HttpConfig, OipConfig
from appliance.core.concurrency import gather_limited, merge_streams
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import Operation
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

Handler = Callable[[Json, Headers], Awaitable[Json | AsyncGenerator[Json]]]
"""
Returns the response to the body of a request, or its chunks; gets the client's headers too.

Raises `RequestError` if the request is wrong or rejected, `GatewayError` if the target does not answer.
"""

Handlers = Mapping[Operation, Handler]

# Text alone cannot serve these.
_UNSUPPORTED_FIELDS = ("logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix")


def oip_handlers(
    name: str, config: OipConfig, client: ServiceClient, model: str, chat: ChatRequestBuilder | None
) -> Handlers:
    """Return the handlers for a target with the Open Inference Protocol; `model` is its name of the model."""
    oip = OipClient(config, client, model)
    handlers: dict[Operation, Handler] = {}
    if config.chat is not None:
        handlers[Operation.CHAT_COMPLETION] = partial(
            chat_over_text, name, OipTextService(config.chat, oip), config.chat, chat
        )
    if config.completions is not None:
        handlers[Operation.COMPLETION] = partial(complete_over_text, name, OipTextService(config.completions, oip))
    if config.embeddings is not None:
        embedder = OipEmbeddingService(config.embeddings, oip)
        handlers[Operation.EMBEDDING] = partial(embed, name, embedder, config.max_batch)
    if config.rerank is not None:
        handlers[Operation.RERANK] = partial(rerank, name, OipRerankService(config.rerank, oip), config.max_batch)
    return handlers


def http_handlers(
    name: str,
    config: HttpConfig,
    client: ServiceClient,
    model: str,
    chat: ChatRequestBuilder | None,
    renderer: TemplateRenderer,
) -> Handlers:
    """Return the handlers for a service with JSON of its own; `model` is its name of the model."""
    handlers: dict[Operation, Handler] = {}
    if config.chat is not None:
        service = HttpTextService(config.chat, client, model, renderer)
        handlers[Operation.CHAT_COMPLETION] = partial(chat_over_text, name, service, config.chat, chat)
    if config.completions is not None:
        service = HttpTextService(config.completions, client, model, renderer)
        handlers[Operation.COMPLETION] = partial(complete_over_text, name, service)
    if config.embeddings is not None:
        embedder = HttpEmbeddingService(config.embeddings, client, model, renderer)
        handlers[Operation.EMBEDDING] = partial(embed, name, embedder, config.max_batch)
    if config.rerank is not None:
        handlers[Operation.RERANK] = partial(
            rerank, name, HttpRerankService(config.rerank, client, model, renderer), None
        )
    return handlers


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
    request = TextRequest.of(fields, [fields.get("prompt") or ""], config.stop)
    response = await _generate(name, service, request, headers)
    form = ChatResponseFormat.of(body, name, config)
    return chat_completion(response, form) if isinstance(response, dict) else chat_chunks(response, form)


async def complete_over_text(
    name: str, service: TextService, body: Json, headers: Headers
) -> Json | AsyncGenerator[Json]:
    """Return the completion, or its chunks."""
    return await _generate(name, service, TextRequest.of_completion(body), headers)


async def embed(name: str, service: EmbeddingService, max_batch: int | None, body: Json, headers: Headers) -> Json:
    """Return the embeddings; one request to the service has at most `max_batch` texts."""
    request = EmbeddingRequest.of(body)
    batches = _batches(request.texts, max_batch)
    results = await gather_limited([partial(service.embed, request, batch, headers) for batch in batches])
    vectors = [vector for batch, _ in results for vector in batch]
    _require_sizes(vectors, request)
    tokens = reduce(TokenCounts.__add__, (tokens for _, tokens in results))
    return _encode(
        Embeddings(
            model=name,
            data=[
                EmbeddingData(index=index, embedding=_base64(vector) if request.is_base64 else vector)
                for index, vector in enumerate(vectors)
            ],
            # OpenAI's clients expect a usage, known or not.
            usage=Usage(prompt_tokens=tokens.prompt, total_tokens=tokens.prompt),
        )
    )


async def rerank(name: str, service: RerankService, max_batch: int | None, body: Json, headers: Headers) -> Json:
    """Return the documents, best first; one request to the service has at most `max_batch` of them."""
    request = RerankRequest.of(body)
    batches = [replace(request, documents=batch) for batch in _batches(request.documents, max_batch)]
    results = await gather_limited([partial(service.score, batch, headers) for batch in batches])
    scores = [score for batch, _ in results for score in batch]
    documents = request.documents
    if len(scores) != len(documents):
        raise GatewayError(f"The target gave {len(scores)} scores for {len(documents)} documents")
    tokens = reduce(TokenCounts.__add__, (tokens for _, tokens in results))
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    return _encode(
        Rerank(
            id=new_id("rerank"),
            model=name,
            results=[
                RerankResult(
                    index=index,
                    relevance_score=scores[index],
                    document=RerankDocument(documents[index]) if request.returns_documents else UNSET,
                )
                for index in order
            ],
            usage=Usage(total_tokens=tokens.prompt + tokens.completion),
        )
    )


async def _generate(
    name: str, service: TextService, request: TextRequest, headers: Headers
) -> Json | AsyncGenerator[Json]:
    """Return the completion, or its chunks; prompts and choices are generated in parallel."""
    for field in _UNSUPPORTED_FIELDS:
        # A `logprobs` of 0 requests one for each token.
        if request.body.get(field) not in (None, "") and request.body[field] is not False:
            raise RequestError(f"{field} is not supported by this model", param=field, code="unsupported_parameter")
    prompts = [prompt for prompt in request.prompts for _ in range(request.n)]
    if request.is_streamed:
        return _chunks(name, [_pieces(service, request, prompt, headers) for prompt in prompts], request)
    texts = await gather_limited([partial(service.generate, request.body, prompt, headers) for prompt in prompts])
    choices = [_choice(index, text, request.stop) for index, text in enumerate(texts)]
    tokens = reduce(TokenCounts.__add__, (text.tokens for text in texts))
    return _completion(name, choices, _usage(tokens) if tokens.is_known else None)


async def _chunks(
    name: str, streams: Sequence[AsyncGenerator[GeneratedText]], request: TextRequest
) -> AsyncGenerator[Json]:
    head = _completion(name, [], None if request.has_usage else UNSET)
    tokens = TokenCounts()
    async with aclosing(merge_streams(streams)) as pieces:
        async for index, piece in pieces:
            tokens += piece.tokens
            choice = CompletionChoice(index=index, text=piece.text, finish_reason=piece.finish_reason)
            yield head | {"choices": [_encode(choice)]}
    if request.has_usage:
        yield head | {"usage": _encode(_usage(tokens))}


async def _pieces(
    service: TextService, request: TextRequest, prompt: str, headers: Headers
) -> AsyncGenerator[GeneratedText]:
    """Yield the pieces of one choice up to a stop sequence; only the last one has a finish reason."""
    stops, reason, tokens = StopSequences(request.stop), "stop", TokenCounts()
    async with aclosing(service.stream(request.body, prompt, headers)) as pieces:
        async for piece in pieces:
            tokens, reason = tokens + piece.tokens, piece.finish_reason or reason
            if text := stops.feed(piece.text):
                yield GeneratedText(text)
            if stops.is_found:
                reason = "stop"
                break
    yield GeneratedText(stops.finish(), reason, tokens)


def _choice(index: int, text: GeneratedText, stop: Sequence[str]) -> CompletionChoice:
    kept = truncate_at_stop(text.text, stop)
    reason = "stop" if kept != text.text else text.finish_reason or "stop"
    return CompletionChoice(index=index, text=kept, finish_reason=reason)


def _completion(name: str, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None) -> Json:
    return _encode(Completion(id=new_id("cmpl"), created=now(), model=name, choices=choices, usage=usage))


def _usage(tokens: TokenCounts) -> Usage:
    return Usage(tokens.prompt, tokens.completion, tokens.prompt + tokens.completion)


def _require_sizes(vectors: Sequence[Sequence[float]], request: EmbeddingRequest) -> None:
    """Require one vector for each text, all of the same size, which is that of the request if it has one."""
    if len(vectors) != len(request.texts):
        raise GatewayError(f"The target gave {len(vectors)} vectors for {len(request.texts)} texts")
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        raise GatewayError("The target gave vectors of different lengths")
    if request.dimensions not in (None, *sizes):
        raise RequestError(
            f"dimensions is {request.dimensions}, and the vectors of this model have {sizes.pop()}", param="dimensions"
        )


def _base64(vector: Sequence[float]) -> str:
    try:
        return encode_vector(vector)
    except ValueError as error:
        raise GatewayError(f"The target gave a vector that float32 cannot hold: {error}") from error


def _batches(texts: Sequence[str], size: int | None) -> list[Sequence[str]]:
    size = size or len(texts)
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _encode(response: msgspec.Struct) -> Json:
    fields: Json = msgspec.to_builtins(response)
    return fields
