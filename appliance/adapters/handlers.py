"""
What answers each operation of an adapter, by the kind of its protocol.
"""

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
from appliance.config.adapters import CompletionsSection
from appliance.config.http_adapter import HttpSection
from appliance.config.oip_adapter import OipSection
from appliance.core.model import Operation

Face = Callable[[Json, Headers], Awaitable[Json | AsyncGenerator[Json]]]
"""
Answers the body of a request, with the client's headers.
"""

Handlers = Mapping[Operation, Face]


def over_completions(name: str, section: CompletionsSection, target: Target, chat: ChatRequestBuilder) -> Handlers:
    """
    The operations of a target that completes.
    """
    over = CompletionsAdapter(name, section, target, chat)
    return {Operation.CHAT_COMPLETION: over.chat, Operation.COMPLETION: over.complete}


def over_oip(
    name: str, section: OipSection, wire: ServiceClient, model: str, chat: ChatRequestBuilder | None
) -> Handlers:
    """
    The operations of a target that speaks the Open Inference Protocol; `model` is its name there.
    """
    client = OipClient(section, wire, model)
    made: dict[Operation, Face] = {}
    if section.chat is not None:
        writer = OipWriter(section.chat, client)
        made[Operation.CHAT_COMPLETION] = Chatting(name, writer, section.chat, chat).answer
    if section.completions is not None:
        made[Operation.COMPLETION] = Completing(name, OipWriter(section.completions, client)).answer
    if section.embeddings is not None:
        embedder = OipEmbedder(section.embeddings, client)
        made[Operation.EMBEDDING] = Embedding(name, embedder, section.max_batch).answer
    if section.rerank is not None:
        made[Operation.RERANK] = Ranking(name, OipRanker(section.rerank, client), section.max_batch).answer
    return made


def over_http(
    name: str,
    section: HttpSection,
    wire: ServiceClient,
    model: str,
    chat: ChatRequestBuilder | None,
    renderer: Renderer,
) -> Handlers:
    """
    The operations of a service with JSON of its own; `model` is its name there.
    """
    made: dict[Operation, Face] = {}
    if section.chat is not None:
        writer = HttpWriter(section.chat, wire, model, renderer)
        made[Operation.CHAT_COMPLETION] = Chatting(name, writer, section.chat, chat).answer
    if section.completions is not None:
        made[Operation.COMPLETION] = Completing(name, HttpWriter(section.completions, wire, model, renderer)).answer
    if section.embeddings is not None:
        embedder = HttpEmbedder(section.embeddings, wire, model, renderer)
        made[Operation.EMBEDDING] = Embedding(name, embedder, section.max_batch).answer
    if section.rerank is not None:
        made[Operation.RERANK] = Ranking(name, HttpRanker(section.rerank, wire, model, renderer)).answer
    return made
