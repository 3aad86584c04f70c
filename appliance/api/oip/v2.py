"""Routes of the Open Inference Protocol v2 over REST.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md; the binary tensor
data, statistics and model repository are extensions of Triton's
(https://github.com/triton-inference-server/server, docs/protocol).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from litestar import Response, get, post
from litestar.enums import HttpMethod, MediaType
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.handlers import BaseRouteHandler, route
from litestar.params import FromPath

from appliance.api.compression import compressed
from appliance.api.disconnect import AnyRequest, before_body, cancel_on_disconnect
from appliance.api.oip import generate, metadata
from appliance.api.oip.inference import authorize, find_model, infer
from appliance.api.request_body import BodyReader
from appliance.api.route_tags import tag_probes
from appliance.auth import PUBLIC
from appliance.core.concurrency import off_loop
from appliance.core.model import Operation
from appliance.core.request_context import current_context
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES
from appliance.tensors.codec import LENGTH_HEADER, read_request, write_response

_PATH = re.compile(r"/?(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z_]+))?")

_GETS: Mapping[str, Callable[[ModelStatus, str], Any]] = {  # Any: JSON values
    "": metadata.describe,
    "config": metadata.configuration,
    "stats": metadata.statistics,
}


class ModelNames(TypedDict):
    """Every name of every model."""

    models: Sequence[str]


class _ModelReady(TypedDict):
    name: str
    ready: bool


class ModelReady(_ModelReady, total=False):
    """Whether a model can answer, and if not, why."""

    error: str


@dataclass(frozen=True, slots=True)
class RouteModel:
    """A path below ``/v2/models``: model, version and verb."""

    name: str
    version: str | None
    verb: str


def routes(
    manager: ModelManager, health: Callable[[], HealthReport], body_reader: BodyReader
) -> list[BaseRouteHandler]:
    """Return the routes for health, metadata, inference and generation."""
    return [*_server(manager, health), *_models(manager, body_reader)]


def _server(manager: ModelManager, health: Callable[[], HealthReport]) -> list[BaseRouteHandler]:
    @get("/v2", name="v2")
    async def server() -> metadata.ServerMetadata:
        return {
            "name": metadata.SERVER,
            "version": metadata.server_version(),
            "extensions": metadata.EXTENSIONS,
        }

    @get("/v2/models", name="v2-models")
    async def models() -> ModelNames:
        return {"models": [name for _, name in manager.visible()]}

    live = _probe("live", lambda now: now.is_live, health)
    ready = _probe("ready", lambda now: now.is_ready, health)
    return [server, models, *tag_probes([live, ready])]


def _probe(word: str, is_good: Callable[[HealthReport], bool], health: Callable[[], HealthReport]) -> BaseRouteHandler:
    @route(
        f"/v2/health/{word}",
        http_method=[HttpMethod.GET, HttpMethod.HEAD],
        name=f"v2-{word}",
        media_type=MediaType.JSON,
        opt={PUBLIC: True},
    )
    async def probe() -> Response[dict[str, bool]]:
        now = health()
        good = is_good(now)
        headers = {} if good else {"Retry-After": str(now.retry_after)}
        return Response({word: good}, status_code=200 if good else 503, headers=headers)

    return probe


def _models(manager: ModelManager, body_reader: BodyReader) -> list[BaseRouteHandler]:
    posts: Mapping[str, Callable[[AnyRequest, RouteModel], Awaitable[Response[Any]]]] = {
        "infer": lambda request, target: _infer(manager, request, target, body_reader),
        "generate": lambda request, target: generate.generate_text(manager, request, target.name, body_reader),
        "generate_stream": lambda request, target: generate.stream_text(manager, request, target.name, body_reader),
    }

    path = "/v2/models/{rest:path}"

    @route(path, http_method=[HttpMethod.GET, HttpMethod.HEAD], name="v2-model", media_type=MediaType.JSON)
    async def show(request: AnyRequest, rest: FromPath[str]) -> Response[Any]:
        target = _require_method(request, rest)
        if rest == "/stats":
            return Response(metadata.all_statistics(manager))
        status = find_model(manager, target.name, target.version)
        return (
            _ready(status, target.name) if target.verb == "ready" else Response(_GETS[target.verb](status, target.name))
        )

    @post(path, name="v2-inference", status_code=200)
    async def run(request: AnyRequest, rest: FromPath[str]) -> Response[Any]:
        target = _require_method(request, rest)
        async with before_body(request):
            find_model(manager, target.name, target.version)
            authorize(manager, target.name, Operation.INFERENCE)
        return await posts[target.verb](request, target)

    # Litestar's own refusal would list the methods of all paths that the wildcard serves.
    @route(path, http_method=[HttpMethod.PUT, HttpMethod.PATCH, HttpMethod.DELETE], name="v2-refusal", status_code=200)
    async def refuse(request: AnyRequest, rest: FromPath[str]) -> None:
        _require_method(request, rest)

    return [show, run, refuse]


_POST_VERBS = frozenset({"infer", "generate", "generate_stream"})
_VERBS = frozenset({"ready", *_POST_VERBS, *_GETS})


def _require_method(request: AnyRequest, rest: str) -> RouteModel:
    """Return the model and the verb of a path.

    Raises:
        NotFoundException: there is no such path.
        MethodNotAllowedException: the path does not take the method of the request.
    """
    target = _parse_path(rest)
    # Some load balancers probe with HEAD.
    allowed = ["POST"] if target.verb in _POST_VERBS else ["GET", "HEAD"] if target.verb == "ready" else ["GET"]
    if request.method not in allowed:
        raise MethodNotAllowedException(headers={"Allow": ", ".join(allowed)})
    return target


def _parse_path(rest: str) -> RouteModel:
    """Parse a path from its end, because the name of a model may contain slashes."""
    found = _PATH.fullmatch(rest)
    if found is None:
        raise NotFoundException
    if (found["verb"] or "") in _VERBS:
        return RouteModel(found["name"], found["version"], found["verb"] or "")
    if found["version"] is not None:
        raise NotFoundException
    return RouteModel(rest.removeprefix("/"), None, "")


def _ready(status: ModelStatus, name: str) -> Response[ModelReady]:
    rule, record = RULES[status.state], current_context()
    if record is not None:
        record.is_probe = True
    if rule.can_answer:
        return Response({"name": name, "ready": True})
    body: ModelReady = {"name": name, "ready": False, "error": status.client_message}
    return Response(body, status_code=503, headers={"Retry-After": str(rule.retry_after)})


async def _infer(
    manager: ModelManager, request: AnyRequest, target: RouteModel, body_reader: BodyReader
) -> Response[Any]:
    body = await body_reader.json(request)
    inference_request = await off_loop(len(body), read_request, body, request.headers.get(LENGTH_HEADER))
    response = await cancel_on_disconnect(
        request, infer(manager, target.name, inference_request, dict(request.headers))
    )
    prefers_binary = inference_request.parameters.get("binary_data_output") is True
    size = sum(len(tensor.raw) for tensor in response.outputs)
    written, headers = await off_loop(
        size, write_response, response, inference_request.outputs, prefers_binary=prefers_binary
    )
    content, coding = await compressed(written, request.headers.get("accept-encoding", ""))
    kind = "application/octet-stream" if headers else "application/json"
    return Response(content, media_type=kind, headers={**headers, **coding})
