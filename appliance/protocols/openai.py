"""
The OpenAI protocol: its routes, its listing of models, its shape of errors.

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
from litestar.response import Stream

from appliance.contract import PATHS, Call, Operation, Reply
from appliance.errors import CallError
from appliance.lifecycle import RULES, Entry, Lifecycle
from appliance.protocols import errors
from appliance.protocols.clients import AnyRequest, unless_gone, whole_body
from appliance.protocols.gateway import Gateway
from appliance.upstream import form

# Clients of OpenAI are pointed at /v1, those of KServe at /openai/v1.
_PREFIXES = ("", "/openai")

# Servers before us that buffer would turn a stream into one late answer.
_UNBUFFERED: Mapping[str, str] = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Envelope(msgspec.Struct):
    """
    All of a request that the protocol reads; the body travels on as it came.
    """

    model: str | None = None


def routes(lifecycle: Lifecycle, gateway: Gateway) -> list[BaseRouteHandler]:
    """
    One route for each operation, and the listing of models.
    """
    operations = [_operation(operation, paths, lifecycle, gateway) for operation, paths in PATHS.items()]
    return [*operations, *_listing(lifecycle, gateway)]


def _operation(
    operation: Operation, paths: tuple[str, ...], lifecycle: Lifecycle, gateway: Gateway
) -> BaseRouteHandler:
    @post([prefix + path for prefix in _PREFIXES for path in paths], status_code=200, name=operation)
    async def answer(request: AnyRequest) -> Response[Any]:
        call = _call(operation, request, await whole_body(request))
        name, call = gateway.named(call, _model_of(call))
        return _response(request, await unless_gone(request, lifecycle.answer(name, call)))

    return answer


def _response(request: AnyRequest, reply: Reply) -> Response[Any]:
    # Said as a header: as a media type it would get a charset, and a second one where it has one.
    headers = {"content-type": reply.media_type, **reply.headers}
    if isinstance(reply.body, bytes):
        return Response(reply.body, status_code=reply.status, media_type=reply.media_type, headers=headers)
    is_told = reply.media_type.startswith("text/event-stream")
    stream = errors.told(request, reply.body) if is_told else reply.body
    return Stream(stream, status_code=reply.status, media_type=reply.media_type, headers={**_UNBUFFERED, **headers})


def _call(operation: Operation, request: AnyRequest, body: bytes) -> Call:
    path = request.scope["path"].removeprefix("/openai").rstrip("/")
    return Call(operation, body, dict(request.headers), path, request.scope["query_string"].decode("latin-1"))


def _model_of(call: Call) -> str | None:
    content_type = call.headers.get("content-type", "")
    if form.is_form(content_type):
        span = form.span_of(call.body, content_type, "model")
        return None if span is None else call.body[span].decode(errors="replace")
    return _named(call.body)


def _named(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=Envelope).model
    except msgspec.ValidationError as error:
        param = "model" if "$.model" in str(error) else None
        raise CallError(f"The body is not a request: {error}", param=param) from error
    except RecursionError as error:
        raise CallError("The body is nested too deeply.", code="invalid_json") from error
    except ValueError as error:
        # A text that is no UTF-8 has an error of its own.
        raise CallError(f"The body is not valid JSON: {error}", code="invalid_json") from error


def _listing(lifecycle: Lifecycle, gateway: Gateway) -> list[BaseRouteHandler]:
    @get([prefix + "/v1/models" for prefix in _PREFIXES], name="models")
    async def list_models() -> dict[str, Any]:  # Any: JSON values
        cards = [_card(entry, name) for entry in lifecycle.entries for name in entry.section.names]
        # The names alone are the Open Inference Protocol's: one answer for the clients of both.
        return {"object": "list", "data": cards, "models": [card["id"] for card in cards]}

    @get([prefix + "/v1/models/{name:path}" for prefix in _PREFIXES], name="model")
    async def show_model(name: FromPath[str]) -> dict[str, Any]:  # Any: JSON values
        name = gateway.plain(name.removeprefix("/")) or ""
        return _card(lifecycle.find(name), name)

    return [list_models, show_model]


def _card(entry: Entry, name: str) -> dict[str, Any]:  # Any: JSON values
    """
    OpenAI's model object, with vLLM's `root`, `parent` and `max_model_len`, KServe's `name` and `ready`, and
    what it can be asked.
    """
    section = entry.section
    return {
        "id": name,
        "object": "model",
        "created": int(entry.since.timestamp()),
        "owned_by": "appliance",
        "root": section.name,
        "parent": None if name in {section.name, *section.aliases} else section.name,
        "aliases": list(section.aliases) if name == section.name else [],
        "name": name,
        "ready": RULES[entry.state].is_ready,
        "operations": sorted(entry.model.operations),
        **entry.model.describe(),
    }
