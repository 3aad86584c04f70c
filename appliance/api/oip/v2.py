"""Routes of the Open Inference Protocol v2 over REST.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/{inference,generate}_rest.md; the
binary tensor data, statistics and model repository are extensions of Triton's
(https://github.com/triton-inference-server/server, docs/protocol).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypedDict

import msgspec
from litestar import Response, get, post
from litestar.enums import HttpMethod
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler, route
from litestar.params import FromPath

from appliance.api import PROTOCOL
from appliance.api.body import BodyReader, compressed
from appliance.api.disconnect import UNBUFFERED, AnyRequest, StreamingResponse, before_body, cancel_on_disconnect
from appliance.api.error_responses import refuse_method, with_error_event
from appliance.api.inner_requests import openai_request, response_events
from appliance.api.oip import metadata
from appliance.api.oip.inference import (
    VERSION,
    authorize,
    find_model,
    infer,
    run_operation,
)
from appliance.api.oip.signatures import OperationSignature, TextInput, default_signature, parse_fields
from appliance.api.probes import Health, probe
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError, RequestError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.core.openai_types import Json
from appliance.core.request_context import current_context
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES
from appliance.tensors.codec import LENGTH_HEADER, decode, read_request, write_response

_OPT = {PROTOCOL: "oip_v2"}

_PATH = re.compile(r"/?(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z_]+))?")

_GETS: Mapping[str, Callable[[ModelStatus, str], Any]] = {  # Any: JSON values
    "": metadata.describe,
    "config": metadata.configuration,
    "stats": metadata.statistics,
}

# The methods of each verb; some load balancers probe with HEAD.
_METHODS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(_GETS, ("GET",)),
    "ready": ("GET", "HEAD"),
    **dict.fromkeys(("infer", "generate", "generate_stream"), ("POST",)),
}

# Keys of a request to generate text that are not parameters.
_NOT_FIELDS = frozenset({"text_input", "parameters", "id"})


class ModelNames(TypedDict):
    """Every name of every model."""

    models: Sequence[str]


class IndexRequest(msgspec.Struct):
    """The optional body of a request for the index."""

    ready: bool = False


class _ModelReady(TypedDict):
    name: str
    ready: bool


class ModelReady(_ModelReady, total=False):
    """Whether a model can answer, and if not, why."""

    error: str


class GenerateRequest(msgspec.Struct):
    """The body of a request; sampling parameters may stand in `parameters` or beside it."""

    text_input: str
    parameters: Json = {}
    id: Any = None  # Any: returned unchanged


class GenerateResponse(msgspec.Struct, kw_only=True):
    """The body of a response, or of an event of a stream; `text_output` is a list if several texts are requested."""

    model_name: str
    model_version: str
    id: Any = None  # Any: as requested
    text_output: str | list[str]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


def routes(manager: ModelManager, health: Health, body_reader: BodyReader) -> list[BaseRouteHandler]:
    """Return the routes for health, metadata, inference, generation and the model repository."""

    @get("/v2", opt=_OPT)
    async def show_server() -> metadata.ServerMetadata:
        return metadata.describe_server()

    @get("/v2/models", opt=_OPT)
    async def list_models() -> ModelNames:
        return {"models": [name for _, name in manager.visible()]}

    # All methods, because Litestar's own answers to others would list those of all paths that the wildcard serves.
    @route("/v2/models/{rest:path}", http_method=list(HttpMethod), status_code=200, opt=_OPT)
    async def answer(request: AnyRequest, rest: FromPath[str]) -> Response[Any]:
        name, version, verb = _parse_path(rest)
        if request.method not in _METHODS[verb]:
            return refuse_method(request, *_METHODS[verb])
        if rest == "/stats":
            return Response(metadata.all_statistics(manager))
        if verb in _GETS:
            return Response(_GETS[verb](find_model(manager, name, version), name))
        if verb == "ready":
            return _ready(find_model(manager, name, version), name)
        async with before_body(request):
            find_model(manager, name, version)
            authorize(manager, name, Operation.INFERENCE)
        if verb == "infer":
            return await _infer(manager, request, name, body_reader)
        return await _generate(manager, request, name, body_reader, is_streamed=verb == "generate_stream")

    live = probe(["/v2/health/live"], health, lambda report: report.is_live, lambda _, is_live: {"live": is_live}, _OPT)
    ready = probe(
        ["/v2/health/ready"], health, lambda report: report.is_ready, lambda _, is_ready: {"ready": is_ready}, _OPT
    )
    return [show_server, list_models, live, ready, answer, *_repository(manager, body_reader)]


def _repository(manager: ModelManager, body_reader: BodyReader) -> list[BaseRouteHandler]:
    @post("/v2/repository/index", status_code=200, opt=_OPT)
    async def show_index(request: AnyRequest) -> list[metadata.RepositoryEntry]:
        body = await body_reader.json(request)
        return metadata.repository_index(manager, only_ready=bool(body) and decode(body, IndexRequest).ready)

    @post("/v2/repository/models/{rest:path}", status_code=200, opt=_OPT)
    async def change_model(request: AnyRequest, rest: FromPath[str]) -> dict[str, Any]:  # Any: JSON values
        name, _, verb = rest.removeprefix("/").rpartition("/")
        if verb not in {"load", "unload"} or not name:
            raise NotFoundException
        async with before_body(request):
            metadata.authorize_change(manager, name, verb)
            _require_json(request)
        # The body would say how to load the model; the config decides that.
        await body_reader.json(request)
        await (manager.load(name) if verb == "load" else manager.unload(name))
        return {"name": name, verb: True}

    return [show_index, change_model]


def _parse_path(rest: str) -> tuple[str, str | None, str]:
    """Return name, version and verb of a path, parsed from its end: the name of a model may contain slashes."""
    found = _PATH.fullmatch(rest)
    if found is None:
        raise NotFoundException
    verb = found["verb"] or ""
    if verb in _METHODS:
        return found["name"], found["version"], verb
    if found["version"] is not None:
        raise NotFoundException
    return rest.removeprefix("/"), None, ""


def _ready(status: ModelStatus, name: str) -> Response[ModelReady]:
    rule = RULES[status.state]
    if (context := current_context()) is not None:
        context.is_probe = True
    if rule.can_answer:
        return Response({"name": name, "ready": True})
    body: ModelReady = {"name": name, "ready": False, "error": status.client_message(name)}
    return Response(body, status_code=503, headers={"Retry-After": str(rule.retry_after)})


async def _infer(manager: ModelManager, request: AnyRequest, name: str, body_reader: BodyReader) -> Response[Any]:
    headers = dict(request.headers)
    body = await body_reader.json(request)
    inference_request = await off_loop(len(body), read_request, body, headers.get(LENGTH_HEADER))
    response = await cancel_on_disconnect(request, infer(manager, name, inference_request, headers))
    prefers_binary = inference_request.parameters.get("binary_data_output") is True
    size = sum(len(tensor.raw) for tensor in response.outputs)
    written, length_header = await off_loop(
        size, write_response, response, inference_request.outputs, prefers_binary=prefers_binary
    )
    content, coding = await compressed(written, headers.get("accept-encoding", ""))
    kind = "application/octet-stream" if length_header else "application/json"
    return Response(content, media_type=kind, headers={**response.headers, **length_header, **coding})


async def _generate(
    manager: ModelManager, request: AnyRequest, name: str, body_reader: BodyReader, *, is_streamed: bool = False
) -> Response[Any]:
    """``{"text_input", "parameters"}`` to ``{"model_name", "model_version", "text_output"}``.

    A stream is the same as server-sent events, each with the new part of the text.
    """
    async with before_body(request):
        signature = _text_signature(manager, name)
    body = await body_reader.json(request)
    text, fields, base = await off_loop(len(body), _parse, body, name)
    texts, headers = {"text_input": TextInput([text], (1,))}, dict(request.headers)
    if not is_streamed:
        work = run_operation(manager, name, signature, texts, fields, headers)
        (tensor,) = await cancel_on_disconnect(request, work)
        outputs = tensor.texts()
        return Response({**base, "text_output": outputs[0] if len(outputs) == 1 else outputs})
    (openai_body,) = signature.bodies(texts)
    model_request = openai_request(name, signature.operation, {**fields, **openai_body, "stream": True}, headers)
    response = await cancel_on_disconnect(request, manager.handle(name, replace(model_request, is_streamed=True)))
    events = with_error_event(request, _events(response_events(response), base))
    return StreamingResponse(events, media_type=sse.MEDIA_TYPE, headers=dict(UNBUFFERED))


def _text_signature(manager: ModelManager, name: str) -> OperationSignature:
    signature = default_signature(manager.find(name).model.operations, manager.authorizer)
    if signature.operation not in {Operation.COMPLETION, Operation.CHAT_COMPLETION}:
        raise UnsupportedOperationError(f"The model {name!r} generates no text; ask it with infer")
    manager.authorizer.require_operation(signature.operation)
    return signature


def _parse(body: bytes, name: str) -> tuple[str, Json, Json]:
    """Return the text, the fields of the body of the OpenAI request, and the fields of every response."""
    fields = decode(body, dict[str, Any])
    text, parameters = fields.get("text_input"), fields.get("parameters", {})
    if not isinstance(text, str):
        raise RequestError(
            "text_input is missing, or is no text; it is what the model goes on from", param="text_input"
        )
    if not isinstance(parameters, dict):
        raise RequestError('parameters must be an object, such as {"max_tokens": 20}', param="parameters")
    base: Json = {"model_name": name, "model_version": VERSION}
    if fields.get("id") is not None:
        base["id"] = fields["id"]
    # Triton's clients send parameters beside the text.
    beside = {key: value for key, value in fields.items() if key not in _NOT_FIELDS}
    parameters = {**beside, **parameters}
    parameters.pop("stream", None)
    return text, parse_fields(parameters), base


async def _events(chunks: AsyncGenerator[Any], base: Json) -> AsyncGenerator[bytes]:  # Any: JSON values
    """Convert an OpenAI stream to one of the Open Inference Protocol."""
    async with aclosing(chunks):
        async for chunk in chunks:
            for choice in _choices(chunk):
                text = (choice.delta.content if choice.delta else choice.text) or ""
                yield sse.json_event({**base, "text_output": text})


def _choices(chunk: Any) -> Sequence[_Choice]:  # Any: JSON values
    try:
        return msgspec.convert(chunk, _Chunk).choices
    except ValueError as error:
        raise GatewayError(f"The model's stream is not what the operation gives: {error}") from error


def _require_json(request: AnyRequest) -> None:
    # A browser sends forms to other origins without a preflight request; JSON it does not.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {"", "application/json"}:
        raise RequestError(f"Content-Type is {media_type[:80]!r}; it must be application/json", status=415)
