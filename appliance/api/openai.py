"""Routes of the OpenAI protocol: operations and the list of models.

Source: https://platform.openai.com/docs/api-reference; messages are Anthropic's
(https://docs.anthropic.com/en/api/messages), rerank Cohere's and Jina's (https://docs.cohere.com/reference/rerank,
https://api.jina.ai/redoc), the rest vLLM's (https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import msgspec
from litestar import Response, get
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api import PROTOCOL, error_responses, websocket
from appliance.api.body import require_no_form, without_byte_order_mark
from appliance.api.dialects import tei
from appliance.api.disconnect import (
    UNBUFFERED,
    AnyRequest,
    StreamingResponse,
    WholeResponse,
    before_body,
    cancel_on_disconnect,
    chunk_sender,
    direct_post,
)
from appliance.api.model_client import ModelClient
from appliance.api.pings import with_pings
from appliance.core import json_edit, multipart, sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError, UnknownModelError
from appliance.core.model import (
    COMPACTION_PATH,
    MULTIPART_OPERATIONS,
    OPENAI_PATHS,
    ModelRequest,
    ModelResponse,
    Operation,
)
from appliance.core.request_context import adopt_request_id
from appliance.core.rewrite import RequestBody
from appliance.models.dispatch import unavailable
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES

# OpenAI's clients use /v1, KServe's use /openai/v1.
PREFIXES = ("", "/openai")

_OPT = {PROTOCOL: "openai"}


class ModelObject(TypedDict):
    """OpenAI's model object with vLLM's `root` and `parent`, KServe's `name` and `ready`, and the operations that the
    caller may use; models add their own fields, such as `max_model_len`.
    """

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: str | None
    aliases: Sequence[str]
    name: str
    ready: bool
    operations: Sequence[str]


class ModelList(TypedDict):
    """OpenAI's list of models; `models` is the list of the Open Inference Protocol v1, on the same path."""

    object: str
    data: Sequence[ModelObject]
    models: Sequence[str]


class Envelope(msgspec.Struct):
    """The fields that are read here; the body is passed on unchanged."""

    model: str | None = None
    stream: Any = None  # Any: only `true` matters here; the model validates it
    texts: Any = None  # Any: of Text Embeddings Inference, whose rankings have the path of Jina's
    request_id: Any = None  # Any: validated by `adopt_request_id`


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return one route for each operation, and the list of models."""
    manager = client.manager

    @get([prefix + "/v1/models" for prefix in PREFIXES], opt=_OPT)
    async def list_models() -> ModelList:
        models = [_model_object(manager, status, name) for status, name in manager.visible()]
        return {"object": "list", "data": models, "models": [each["id"] for each in models]}

    @get([prefix + "/v1/models/{name:path}" for prefix in PREFIXES], opt=_OPT)
    async def show_model(request: AnyRequest, name: FromPath[str]) -> ModelObject:
        name = client.kserve_names.strip_prefix(name.removeprefix("/")) or ""
        try:
            status = manager.find(name)
        except UnknownModelError:
            if request.scope["path"].startswith("/v1/") and name.endswith((":predict", ":explain")):
                # These are routes of the Open Inference Protocol.
                raise MethodNotAllowedException(headers={"Allow": "POST"}) from None
            raise
        if not status.rule.can_answer:
            # KServe's clients of the protocol's version 1 read this status, and nothing else, as "not ready".
            raise unavailable(status, name)
        return _model_object(manager, status, name)

    responses = [prefix + OPENAI_PATHS[Operation.RESPONSE][0] for prefix in PREFIXES]
    upgrade = websocket.upgrade_route(responses, manager.authorizer)
    return [*(_route(operation, client) for operation in OPENAI_PATHS), upgrade, list_models, show_model]


def _route(operation: Operation, client: ModelClient) -> BaseRouteHandler:
    paths = [prefix + path for prefix in PREFIXES for path in OPENAI_PATHS[operation]]

    async def handle(request: AnyRequest) -> Response[Any]:
        async with before_body(request):
            client.manager.authorizer.require_operation(operation)
            content_type = _content_type(operation, request.headers)
        body = await client.body_reader.body(request)
        path = request.scope["path"].removeprefix("/openai").rstrip("/")
        return await answer(client, request, operation, body, content_type, path)

    return direct_post(paths, handle, opt=_OPT)


async def answer(
    client: ModelClient,
    request: AnyRequest,
    operation: Operation,
    body: bytes,
    content_type: str = "application/json",
    path: str = "",
) -> Response[Any]:
    """Return the response to a request for an operation, whose body is decompressed; `path` as in `ModelRequest`."""
    headers = {**request.headers, "content-type": content_type}
    headers.pop("content-encoding", None)
    body, cache = without_byte_order_mark(body), websocket.cache_of(request)
    if cache is not None:
        body = await off_loop(len(body), websocket.request_body, body)
    max_parts = client.body_reader.server().limits.form_parts
    envelope = await off_loop(len(body), _envelope, body, content_type, max_parts)
    if path == "/rerank" and envelope.texts is not None:
        await client.body_reader.require_shape(body)
        return await tei.answer_any(client, request, body)
    name = client.kserve_names.requested_model(envelope.model, headers)
    if name is None and path == COMPACTION_PATH:
        raise RequestError("model is missing; a compaction needs it", param="model")
    client.manager.find(name)
    if operation not in MULTIPART_OPERATIONS:
        await client.body_reader.require_shape(body)
    if envelope.request_id is not None:
        headers["x-request-id"] = adopt_request_id(envelope.request_id)
        if operation is Operation.RESPONSE:
            # Responses are found by their id, so no client chooses one.
            body = await off_loop(len(body), json_edit.edit, body, {"request_id": json_edit.remove})
    if name is not None and name != envelope.model:
        body = await off_loop(len(body), _with_model, body, content_type, name)
    query = request.scope["query_string"].decode("latin-1")
    model_request = ModelRequest(
        operation,
        body,
        headers,
        path,
        query,
        is_streamed=envelope.stream is True,
        model=envelope.model or None,
        send=chunk_sender(request),
    )
    is_response = operation is Operation.RESPONSE
    handle = partial(client.responses.handle, cache=cache) if is_response else client.manager.handle
    is_pinged = operation is Operation.MESSAGE and model_request.is_streamed
    respond = with_pings if is_pinged else cancel_on_disconnect
    return client_response(request, await respond(request, handle(name, model_request)))


def _content_type(operation: Operation, headers: Mapping[str, str]) -> str:
    """Return the type that the body is parsed as, here and later: the operation decides, not the client's header."""
    content_type = headers.get("content-type", "")
    if operation in MULTIPART_OPERATIONS:
        if not multipart.is_form(content_type):
            raise RequestError(
                f"Content-Type is {content_type[:80]!r}; this route takes {multipart.MEDIA_TYPE}", status=415
            )
        return content_type
    require_no_form(content_type)
    return "application/json"


def _envelope(body: bytes, content_type: str, max_parts: int) -> Envelope:
    try:
        if not multipart.is_form(content_type):
            return msgspec.json.decode(body, type=Envelope)
        fields = multipart.read_form(body, content_type, max_parts)
        stream = multipart.text_value(body, fields.get("stream")) or ""
        return Envelope(multipart.text_value(body, fields.get("model")), stream.lower() == "true")
    except multipart.FormError as error:
        raise RequestError(str(error), code="invalid_form") from error
    except msgspec.ValidationError as error:
        param = "model" if "$.model" in str(error) else None
        raise RequestError(f"The body is not a request: {error}", param=param) from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply.", code="invalid_json") from error
    except ValueError as error:
        # Invalid UTF-8 has an error of its own.
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error


def _with_model(body: bytes, content_type: str, name: str) -> bytes:
    return RequestBody.of(body, content_type).with_model(name)


def client_response(request: AnyRequest, response: ModelResponse) -> Response[Any]:
    """Return a model's response as HTTP's; the error of an event stream is its last event."""
    # As a header, because Litestar adds a charset to media types.
    headers = {"content-type": response.media_type, **response.headers}
    if isinstance(response.body, bytes):
        return WholeResponse(response.body, response.status, headers)
    is_event_stream = response.media_type.startswith(sse.MEDIA_TYPE)
    stream = error_responses.with_error_event(request, response.body) if is_event_stream else response.body
    return StreamingResponse(
        stream, status_code=response.status, media_type=response.media_type, headers={**UNBUFFERED, **headers}
    )


def _model_object(manager: ModelManager, status: ModelStatus, name: str) -> ModelObject:
    config, access = status.config, manager.authorizer
    # A key for an alias or a LoRA adapter must not reveal the name of the model.
    root = config.name if access.sees(config.name) else name
    return {
        "id": name,
        "object": "model",
        "created": int(status.since.timestamp()),
        "owned_by": "appliance",
        "root": root,
        "parent": None if name in {config.name, *config.alias_names} else root,
        "aliases": list(config.alias_names) if name == config.name else [],
        "name": name,
        "ready": RULES[status.state].can_answer,
        "operations": sorted(filter(access.may_request, status.model.operations)),
        **status.model.describe(),  # type: ignore[typeddict-item]  # the model's own fields
    }
