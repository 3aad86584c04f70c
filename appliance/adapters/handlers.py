"""What answers each operation of an adapter, by the kind of its protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from appliance.adapters.chat_request import ChatRequestBuilder
from appliance.adapters.completions import CompletionsAdapter
from appliance.adapters.http import HttpEmbedder, HttpRanker, HttpWriter
from appliance.adapters.http_client import Headers, ServiceClient
from appliance.adapters.messages import Json
from appliance.adapters.oip import OipClient, OipEmbedder, OipRanker, OipWriter
from appliance.adapters.operations import Chatting, Completing, Embedding, Ranking
from appliance.adapters.renderer import Renderer
from appliance.adapters.target import Target
from appliance.config.adapters import CompletionsConfig, HttpConfig, OipConfig
from appliance.core.model import Operation

Face = Callable[[Json, Headers], Awaitable[Json | AsyncGenerator[Json]]]
"""
Answers the body of a request, with the client's headers.
"""

Handlers = Mapping[Operation, Face]


def over_completions(name: str, config: CompletionsConfig, target: Target, chat: ChatRequestBuilder) -> Handlers:
    """The operations of a target that completes."""
    over = CompletionsAdapter(name, config, target, chat)
    return {Operation.CHAT_COMPLETION: over.chat, Operation.COMPLETION: over.complete}


def over_oip(
    name: str, config: OipConfig, wire: ServiceClient, model: str, chat: ChatRequestBuilder | None
) -> Handlers:
    """The operations of a target that speaks the Open Inference Protocol; `model` is its name there."""
    client = OipClient(config, wire, model)
    made: dict[Operation, Face] = {}
    if config.chat is not None:
        writer = OipWriter(config.chat, client)
        made[Operation.CHAT_COMPLETION] = Chatting(name, writer, config.chat, chat).answer
    if config.completions is not None:
        made[Operation.COMPLETION] = Completing(name, OipWriter(config.completions, client)).answer
    if config.embeddings is not None:
        embedder = OipEmbedder(config.embeddings, client)
        made[Operation.EMBEDDING] = Embedding(name, embedder, config.max_batch).answer
    if config.rerank is not None:
        made[Operation.RERANK] = Ranking(name, OipRanker(config.rerank, client), config.max_batch).answer
    return made


def over_http(
    name: str,
    config: HttpConfig,
    wire: ServiceClient,
    model: str,
    chat: ChatRequestBuilder | None,
    renderer: Renderer,
) -> Handlers:
    """The operations of a service with JSON of its own; `model` is its name there."""
    made: dict[Operation, Face] = {}
    if config.chat is not None:
        writer = HttpWriter(config.chat, wire, model, renderer)
        made[Operation.CHAT_COMPLETION] = Chatting(name, writer, config.chat, chat).answer
    if config.completions is not None:
        made[Operation.COMPLETION] = Completing(name, HttpWriter(config.completions, wire, model, renderer)).answer
    if config.embeddings is not None:
        embedder = HttpEmbedder(config.embeddings, wire, model, renderer)
        made[Operation.EMBEDDING] = Embedding(name, embedder, config.max_batch).answer
    if config.rerank is not None:
        made[Operation.RERANK] = Ranking(name, HttpRanker(config.rerank, wire, model, renderer)).answer
    return made
