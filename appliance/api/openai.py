"""The OpenAI protocol: its routes, its listing of models, its shape of errors.

Source: https://platform.openai.com/docs/api-reference; messages are Anthropic's
(https://docs.anthropic.com/en/api/messages), rerank Cohere's and Jina's (https://docs.cohere.com/reference/rerank,
https://api.jina.ai/redoc), the rest vLLM's (https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api import error_responses
from appliance.api.disconnect import AnyRequest, before_body, cancel_on_disconnect
from appliance.api.kserve_names import KServeNames
from appliance.api.request_body import BodyReader, require_no_form
from appliance.api.route_tags import tag_protocol
from appliance.api.streaming_response import StreamingResponse
from appliance.auth import Authorizer
from appliance.core import multipart, sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.model import MULTIPART_OPERATIONS, OPENAI_PATHS, ModelRequest, ModelResponse, Operation
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES

# Clients of OpenAI are pointed at /v1, those of KServe at /openai/v1.
_PREFIXES = ("", "/openai")

# Servers before us that buffer would turn a stream into one late answer.
_UNBUFFERED: Mapping[str, str] = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Envelope(msgspec.Struct):
    """All of a request that the protocol reads; the body travels on as it came."""

    model: str | None = None
    stream: Any = None  # Any: only whether it is true; the rest is for whoever answers


def routes(manager: ModelManager, gateway: KServeNames, intake: BodyReader) -> list[BaseRouteHandler]:
    """One route for each operation, and the listing of models."""
    operations = [_operation(operation, paths, manager, gateway, intake) for operation, paths in OPENAI_PATHS.items()]
    return tag_protocol("openai", [*operations, *_listing(manager, gateway)])


def _operation(
    operation: Operation, paths: tuple[str, ...], manager: ModelManager, gateway: KServeNames, intake: BodyReader
) -> BaseRouteHandler:
    @post([prefix + path for prefix in _PREFIXES for path in paths], status_code=200, name=operation)
    async def answer(request: AnyRequest) -> Response[Any]:
        headers = dict(request.headers)
        async with before_body(request):
            manager.access.require_operation(operation)
            headers["content-type"] = _content_type(operation, headers)
        body = await intake.body(request)
        # It is decompressed by now.
        headers.pop("content-encoding", None)
        envelope = await off_loop(len(body), _envelope, body, headers["content-type"], intake)
        manager.find(gateway.meant(envelope.model, headers))
        if operation not in MULTIPART_OPERATIONS:
            await intake.require_shape(body)
        call = _call(operation, request, body, headers, is_streamed=envelope.stream is True)
        name, call = await off_loop(len(body), gateway.named, call, envelope.model)
        return _response(request, await cancel_on_disconnect(request, manager.handle(name, call)))

    return answer


def _response(request: AnyRequest, reply: ModelResponse) -> Response[Any]:
    # Said as a header: as a media type it would get a charset, and a second one where it has one.
    headers = {"content-type": reply.media_type, **reply.headers}
    if isinstance(reply.body, bytes):
        return Response(reply.body, status_code=reply.status, media_type=reply.media_type, headers=headers)
    is_told = reply.media_type.startswith(sse.MEDIA_TYPE)
    stream = error_responses.with_error_event(request, reply.body) if is_told else reply.body
    return StreamingResponse(
        stream, status_code=reply.status, media_type=reply.media_type, headers={**_UNBUFFERED, **headers}
    )


def _content_type(operation: Operation, headers: Mapping[str, str]) -> str:
    """What the body is read as here and everywhere after: the operation decides it, and not the client's header.

    Raises:
        RequestError: the client says that it sends something else.
    """
    said = headers.get("content-type", "")
    if operation in MULTIPART_OPERATIONS:
        if not multipart.is_form(said):
            raise RequestError(f"Content-Type is {said[:80]!r}; this route takes {multipart.MEDIA_TYPE}", status=415)
        return said
    require_no_form(said)
    return "application/json"


def _call(
    operation: Operation, request: AnyRequest, body: bytes, headers: Mapping[str, str], *, is_streamed: bool
) -> ModelRequest:
    path = request.scope["path"].removeprefix("/openai").rstrip("/")
    query = request.scope["query_string"].decode("latin-1")
    return ModelRequest(operation, body, headers, path, query, is_streamed=is_streamed)


def _envelope(body: bytes, content_type: str, intake: BodyReader) -> Envelope:
    if multipart.is_form(content_type):
        return _envelope_of_form(body, content_type, intake.server.limits.form_parts)
    try:
        return msgspec.json.decode(body, type=Envelope)
    except msgspec.ValidationError as error:
        param = "model" if "$.model" in str(error) else None
        raise RequestError(f"The body is not a request: {error}", param=param) from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply.", code="invalid_json") from error
    except ValueError as error:
        # A text that is no UTF-8 has an error of its own.
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error


def _envelope_of_form(body: bytes, content_type: str, most_parts: int) -> Envelope:
    try:
        fields = multipart.read_form(body, content_type, most_parts)
        stream = multipart.text_value(body, fields.get("stream"))
        return Envelope(
            multipart.text_value(body, fields.get("model")), stream is not None and stream.lower() == "true"
        )
    except multipart.FormError as error:
        raise RequestError(str(error), code="invalid_form") from error


def _listing(manager: ModelManager, gateway: KServeNames) -> list[BaseRouteHandler]:
    @get([prefix + "/v1/models" for prefix in _PREFIXES], name="models")
    async def list_models() -> dict[str, Any]:  # Any: JSON values
        cards = [_card(entry, name, manager.access) for entry, name in manager.visible()]
        # The names alone are the Open Inference Protocol's: one answer for the clients of both.
        return {"object": "list", "data": cards, "models": [card["id"] for card in cards]}

    @get([prefix + "/v1/models/{name:path}" for prefix in _PREFIXES], name="model")
    async def show_model(name: FromPath[str]) -> dict[str, Any]:  # Any: JSON values
        name = gateway.plain(name.removeprefix("/")) or ""
        return _card(manager.find(name), name, manager.access)

    return [list_models, show_model]


def _card(entry: ModelStatus, name: str, access: Authorizer) -> dict[str, Any]:  # Any: JSON values
    """OpenAI's model object, with vLLM's `root`, `parent` and `max_model_len`, KServe's `name` and `ready`, and
    what the current caller may ask of it.
    """
    config = entry.config
    # A key for an alias or an adapter does not learn what the model behind it is called.
    root = config.name if access.sees(config.name) else name
    return {
        "id": name,
        "object": "model",
        "created": int(entry.since.timestamp()),
        "owned_by": "appliance",
        "root": root,
        "parent": None if name in {config.name, *config.aliases} else root,
        "aliases": list(config.aliases) if name == config.name else [],
        "name": name,
        "ready": RULES[entry.state].can_answer,
        "operations": sorted(filter(access.may_ask, entry.model.operations)),
        **entry.model.describe(),
    }
