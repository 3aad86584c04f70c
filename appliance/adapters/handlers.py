"""From the config of an adapter to the handler of each operation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from appliance.adapters.chat_request import ChatRequestBuilder
from appliance.adapters.completions import CompletionsOperations, PeerTarget, RemoteTarget
from appliance.adapters.http_service import HttpService, HttpTextService
from appliance.adapters.oip import OipClient, OipEmbeddingService, OipRerankService, OipTextService
from appliance.adapters.operations import (
    EmbeddingService,
    RerankService,
    TextService,
    chat_over_text,
    complete_over_text,
    embed,
    rerank,
)
from appliance.adapters.renderer import Renderer
from appliance.adapters.service_client import Headers, ServiceClient
from appliance.adapters.templates import load_chat_template
from appliance.config.adapters import CompletionsConfig, OipConfig
from appliance.config.models import AdapterConfig
from appliance.core.model import Operation, Peers
from appliance.core.openai_types import Json

Handler = Callable[[Json, Headers], Awaitable[Json | AsyncGenerator[Json]]]
"""
Returns the response to the body of a request, or its chunks; gets the client's headers too.

Raises `RequestError` if the request is wrong or rejected, `GatewayError` if the target does not answer.
"""

Handlers = Mapping[Operation, Handler]


def build_handlers(
    config: AdapterConfig, client: ServiceClient | None, peers: Peers, renderer: Renderer, tokenizer: Path | None
) -> Handlers:
    """Return the handlers; `client` is None if the target is a model of the same file, `tokenizer` is a local copy.

    Blocks while templates are read and compiled.

    Raises:
        LoadError: there is no chat template where it should be, or it is not one.
    """
    name, target, protocol = config.name, config.target, config.protocol
    chat: ChatRequestBuilder | None = None
    if (templated := protocol.templated) is not None:
        template = load_chat_template(templated.chat_template, tokenizer, renderer)
        chat = None if template is None else ChatRequestBuilder(template, templated.stop)
    model = name if isinstance(target, str) else target.model or name
    if isinstance(protocol, CompletionsConfig):
        assert chat is not None  # noqa: S101 - the config has a template
        peer_or_remote = RemoteTarget(client, model) if client else PeerTarget(str(target), peers)
        operations = CompletionsOperations(name, protocol, peer_or_remote)
        chat_handler = partial(chat_over_completions, operations, chat)
        return {Operation.CHAT_COMPLETION: chat_handler, Operation.COMPLETION: operations.complete}
    assert client is not None  # noqa: S101 - the config allows only a target elsewhere
    text: Callable[[Any], TextService] = partial(HttpTextService, client, model, renderer)  # Any: the config of it
    embedding: Callable[[Any], EmbeddingService] = partial(HttpService, client, model, renderer)
    reranking: Callable[[Any], RerankService] = partial(HttpService, client, model, renderer)
    max_documents = None
    if isinstance(protocol, OipConfig):
        oip = OipClient(protocol, client, model)
        text, embedding, reranking = (
            partial(OipTextService, oip),
            partial(OipEmbeddingService, oip),
            partial(OipRerankService, oip),
        )
        max_documents = protocol.max_batch
    handlers: dict[Operation, Handler] = {}
    if protocol.chat is not None:
        handlers[Operation.CHAT_COMPLETION] = partial(chat_over_text, name, text(protocol.chat), protocol.chat, chat)
    if protocol.completions is not None:
        handlers[Operation.COMPLETION] = partial(complete_over_text, name, text(protocol.completions))
    if protocol.embeddings is not None:
        handlers[Operation.EMBEDDING] = partial(embed, name, embedding(protocol.embeddings), protocol.max_batch)
    if protocol.rerank is not None:
        handlers[Operation.RERANK] = partial(rerank, name, reranking(protocol.rerank), max_documents)
    return handlers


async def chat_over_completions(
    operations: CompletionsOperations, chat: ChatRequestBuilder, body: Json, headers: Headers
) -> Json | AsyncGenerator[Json]:
    """Return the chat completion, or its chunks."""
    return await operations.chat(body, await chat.completion(body), headers)
