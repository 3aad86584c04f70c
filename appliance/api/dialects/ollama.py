"""Ollama's API: chats, texts, embeddings and listings; the config decides which models there are.

Source: https://docs.ollama.com/api, and https://github.com/ollama/ollama, server/routes.go.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.enums import HttpMethod
from litestar.handlers import BaseRouteHandler, route

from appliance.api import PROTOCOL
from appliance.api.dialects import embeddings
from appliance.api.dialects.ollama_requests import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    NameRequest,
    options,
)
from appliance.api.dialects.ollama_responses import Completion, ResponseWriter, now
from appliance.api.disconnect import UNBUFFERED, AnyRequest, StreamingResponse, before_body
from appliance.api.error_responses import with_error_event
from appliance.api.model_client import ModelClient, truncation
from appliance.config.models import GenerativeConfig
from appliance.core.errors import RequestError, UnknownModelError
from appliance.core.model import Operation
from appliance.core.openai_types import Embeddings, Json
from appliance.models.dispatch import unavailable
from appliance.models.model_status import ModelStatus

VERSION = "0.13.4"
"""The version of Ollama whose API this is; clients refuse servers that are too old for them."""

_OPT = {PROTOCOL: "ollama"}
_MEDIA_TYPE = "application/x-ndjson"

# The tag of a name without one.
_LATEST = ":latest"

# A model that stays has no date; this is the last one that every client can read.
_NEVER = "9999-12-31T23:59:59Z"

# What only the config can do, by method and path, and the remedy.
_REFUSED: Mapping[tuple[HttpMethod, str], str] = {
    (HttpMethod.POST, "/api/pull"): "add the model to models: in the config, which a reload applies",
    (HttpMethod.POST, "/api/push"): "upload the model's files to the storage that the config names",
    (HttpMethod.POST, "/api/create"): "add the model to models: in the config, which a reload applies",
    (HttpMethod.POST, "/api/copy"): "add an alias to the model in the config, which a reload applies",
    (HttpMethod.DELETE, "/api/delete"): "remove the model from the config, which a reload applies",
}


class Model(msgspec.Struct):
    """A model in a list; sizes and digests of files are not known here, so the digest is of the name."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Json
    capabilities: list[str]


class Models(msgspec.Struct):
    """A list of models."""

    models: list[Model]


class RunningModel(msgspec.Struct):
    """A model that can answer."""

    name: str
    model: str
    size: int
    digest: str
    details: Json
    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(msgspec.Struct):
    """The models that can answer."""

    models: list[RunningModel]


class Description(msgspec.Struct):
    """What is known of a model."""

    details: Json
    model_info: Json
    capabilities: list[str]
    modified_at: str
    modelfile: str = ""
    parameters: str = ""
    template: str = ""


class Version(msgspec.Struct):
    """The version of the API."""

    version: str


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return all routes."""
    return [*_generation_routes(client), *_embedding_routes(client), *_listing_routes(client), *_refusals(client)]


def _generation_routes(client: ModelClient) -> Iterator[BaseRouteHandler]:
    @post("/api/chat", status_code=200, opt=_OPT)
    async def chat(request: AnyRequest) -> Response[Any]:  # Any: bytes, or a stream
        body = await client.read(request, ChatRequest)
        return await _generate(client, request, body, is_empty=not body.messages)

    @post("/api/generate", status_code=200, opt=_OPT)
    async def generate(request: AnyRequest) -> Response[Any]:  # Any: as above
        body = await client.read(request, GenerateRequest)
        return await _generate(client, request, body, is_empty=not (body.prompt or body.images))

    yield from (chat, generate)


async def _generate(
    client: ModelClient, request: AnyRequest, body: ChatRequest | GenerateRequest, *, is_empty: bool
) -> Response[Any]:
    name, status = _find(client, request, body.model)
    is_chat = isinstance(body, ChatRequest)
    writer = ResponseWriter(body.model, is_chat)
    if is_empty:
        return _loaded(status, body, writer)
    is_completion = isinstance(body, GenerateRequest) and body.is_completion
    operation = Operation.COMPLETION if is_completion else Operation.CHAT_COMPLETION
    fields = body.openai(status)
    if not body.is_streamed:
        return await client.answer(request, name, operation, fields, Completion, writer.whole)
    chunks, headers = await client.stream(request, name, operation, fields)
    lines = with_error_event(request, writer.lines(chunks), are_events=False)
    return StreamingResponse(lines, media_type=_MEDIA_TYPE, headers={**UNBUFFERED, **headers})


def _loaded(status: ModelStatus, body: ChatRequest | GenerateRequest, writer: ResponseWriter) -> Response[bytes]:
    """Answer a request without a prompt, with which clients load a model, or with `keep_alive: 0` unload it."""
    if body.keep_alive in {0, "0", "0s"}:
        raise RequestError(
            "A model is unloaded by POST /v2/repository/models/NAME/unload, with a key that has admin: true",
            param="keep_alive",
        )
    if not status.rule.can_answer:
        raise unavailable(status, body.model)
    told: Json = {"message": {"role": "assistant", "content": ""}} if writer.is_chat else {"response": ""}
    answer = {"model": body.model, "created_at": now(), **told, "done": True, "done_reason": "load"}
    # One line is a stream, too.
    media_type = _MEDIA_TYPE if body.is_streamed else "application/json"
    return Response(msgspec.json.encode(answer), media_type=media_type)


def _embedding_routes(client: ModelClient) -> Iterator[BaseRouteHandler]:
    @post("/api/embed", status_code=200, opt=_OPT)
    async def embed(request: AnyRequest) -> Response[bytes]:
        body = await client.read(request, EmbedRequest)
        name, status = _find(client, request, body.model)
        options(body.options)
        side = None if body.truncate is False else "right"
        fields: Json = {"input": body.input if isinstance(body.input, list) else [body.input]}
        fields |= truncation(status, side, is_explicit=body.truncate is not None)
        fields |= {"dimensions": body.dimensions} if body.dimensions else {}
        began = time.monotonic_ns()

        def translate(found: Embeddings) -> Json:
            tokens = found.usage.prompt_tokens if found.usage else None
            return {
                "model": body.model,
                "embeddings": list(map(embeddings.normalized, embeddings.vectors(found, len(fields["input"])))),
                "total_duration": time.monotonic_ns() - began,
                "load_duration": 0,
                "prompt_eval_count": tokens if isinstance(tokens, int) else 0,
            }

        return await client.answer(request, name, Operation.EMBEDDING, fields, Embeddings, translate)

    @post("/api/embeddings", status_code=200, opt=_OPT)
    async def embed_one(request: AnyRequest) -> Response[bytes]:
        body = await client.read(request, EmbeddingsRequest)
        name, status = _find(client, request, body.model)
        options(body.options)
        fields = {"input": [body.prompt], **truncation(status, "right", is_explicit=False)}

        def translate(found: Embeddings) -> Json:
            return {"embedding": embeddings.vectors(found, 1)[0]}

        return await client.answer(request, name, Operation.EMBEDDING, fields, Embeddings, translate)

    yield from (embed, embed_one)


def _listing_routes(client: ModelClient) -> Iterator[BaseRouteHandler]:
    manager = client.manager

    @route("/api/tags", http_method=[HttpMethod.GET, HttpMethod.HEAD], opt=_OPT)
    async def list_models() -> Models:
        return Models([_model(client, status, name) for status, name in manager.visible()])

    @get("/api/ps", opt=_OPT)
    async def list_running() -> RunningModels:
        running = [(status, name) for status, name in manager.visible() if status.rule.can_answer]
        return RunningModels([_running(status, name) for status, name in running])

    @post("/api/show", status_code=200, opt=_OPT)
    async def show(request: AnyRequest) -> Description:
        body = await client.read(request, NameRequest)
        _, status = _find(client, request, body.model or body.name)
        return _description(client, status)

    @route("/api/version", http_method=[HttpMethod.GET, HttpMethod.HEAD], opt=_OPT)
    async def show_version() -> Version:
        manager.authorizer.require_key()
        return Version(VERSION)

    yield from (list_models, list_running, show, show_version)


def _refusals(client: ModelClient) -> Iterator[BaseRouteHandler]:
    def declare(method: HttpMethod, path: str, remedy: str) -> BaseRouteHandler:
        @route(path, http_method=method, status_code=200, opt=_OPT)
        async def refuse(request: AnyRequest) -> None:
            async with before_body(request):
                client.manager.authorizer.require_key()
                raise RequestError(f"The config decides which models this server has; {remedy}")

        return refuse

    return (declare(method, path, remedy) for (method, path), remedy in _REFUSED.items())


def _find(client: ModelClient, request: AnyRequest, name: str) -> tuple[str, ModelStatus]:
    """Return a model by its name, with which the tag `latest` may be sent."""
    try:
        return client.find(request, name)
    except UnknownModelError:
        if not name.endswith(_LATEST):
            raise
        return client.find(request, name.removesuffix(_LATEST))


def _model(client: ModelClient, status: ModelStatus, name: str) -> Model:
    return Model(name, name, _modified(status), 0, _digest(name), _details(status), _capabilities(client, status))


def _running(status: ModelStatus, name: str) -> RunningModel:
    length = status.model.describe().get("max_model_len", 0)
    return RunningModel(name, name, 0, _digest(name), _details(status), _NEVER, 0, length)


def _description(client: ModelClient, status: ModelStatus) -> Description:
    facts, family = status.model.describe(), status.config.backend
    lengths = {"context_length": facts.get("max_model_len"), "embedding_length": facts.get("dimensions")}
    info = {f"{family}.{key}": value for key, value in lengths.items() if value is not None}
    info["general.architecture"] = family
    return Description(_details(status), info, _capabilities(client, status), _modified(status))


def _details(status: ModelStatus) -> Json:
    family = status.config.backend
    return {
        "parent_model": "",
        "format": "",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": "",
    }


def _capabilities(client: ModelClient, status: ModelStatus) -> list[str]:
    """Return what a model can do for this caller; of servers elsewhere nothing tells whether they take tools."""
    config, operations = status.config, status.model.operations
    may = {each for each in operations if client.manager.authorizer.may_request(each)}
    ours = config if isinstance(config, GenerativeConfig) else None
    chats = Operation.CHAT_COMPLETION in may
    found = {
        "completion": chats or Operation.COMPLETION in may,
        "tools": chats and (ours is None or ours.tool_call_parser is not None),
        "thinking": chats and ours is not None and ours.reasoning_parser is not None,
        "embedding": Operation.EMBEDDING in may,
    }
    return [name for name, is_so in found.items() if is_so]


def _modified(status: ModelStatus) -> str:
    return status.since.isoformat().replace("+00:00", "Z")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
