"""The model repository API: index, load and unload.

Source: https://github.com/triton-inference-server/server, protocol/extension_model_repository.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import msgspec
from litestar import post
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api import PROTOCOL
from appliance.api.body import BodyReader
from appliance.api.disconnect import AnyRequest, before_body
from appliance.api.oip.inference import VERSION
from appliance.core.errors import ForbiddenError, RequestError
from appliance.models.manager import ModelManager
from appliance.models.state import RULES, State
from appliance.tensors.codec import decode

# State in the repository index, for each state of a model; other states are UNAVAILABLE.
_STATES: Mapping[State, str] = {
    State.READY: "READY",
    **dict.fromkeys((State.PENDING, State.FETCHING, State.LOADING, State.PROVING, State.RESTARTING), "LOADING"),
    State.DRAINING: "UNLOADING",
}


class RepositoryEntry(TypedDict):
    """A name of a model with its state."""

    name: str
    version: str
    state: str
    reason: str


class IndexRequest(msgspec.Struct):
    """The optional body of a request for the index."""

    ready: bool = False


def routes(manager: ModelManager, body_reader: BodyReader) -> list[BaseRouteHandler]:
    """Return the routes for the index, and for loading and unloading, which need `server.admin`."""

    @post("/v2/repository/index", status_code=200, opt={PROTOCOL: "oip_v2"})
    async def show_index(request: AnyRequest) -> list[RepositoryEntry]:
        body = await body_reader.json(request)
        return index(manager, only_ready=bool(body) and decode(body, IndexRequest).ready)

    @post("/v2/repository/models/{rest:path}", status_code=200, opt={PROTOCOL: "oip_v2"})
    async def change_model(request: AnyRequest, rest: FromPath[str]) -> dict[str, Any]:  # Any: JSON values
        name, _, verb = rest.removeprefix("/").rpartition("/")
        if verb not in {"load", "unload"} or not name:
            raise NotFoundException
        async with before_body(request):
            _authorize(manager, name, verb)
            _require_json(request)
        # The body would say how to load the model; the config decides that.
        await body_reader.json(request)
        await change(manager, name, "load" if verb == "load" else "unload")
        return {"name": name, verb: True}

    return [show_index, change_model]


def index(manager: ModelManager, *, only_ready: bool = False) -> list[RepositoryEntry]:
    """Return the repository index: every name of every model with its state."""
    return [
        {
            "name": name,
            "version": VERSION,
            "state": _STATES.get(status.state, "UNAVAILABLE"),
            "reason": "" if RULES[status.state].can_answer else status.client_message,
        }
        for status, name in manager.visible()
        if RULES[status.state].can_answer or not only_ready
    ]


async def change(manager: ModelManager, name: str, verb: Literal["load", "unload"]) -> None:
    """Load or unload a model; see the methods of `ModelManager`."""
    _authorize(manager, name, verb)
    await (manager.load(name) if verb == "load" else manager.unload(name))


def _authorize(manager: ModelManager, name: str, verb: str) -> None:
    manager.authorizer.require_admin()
    if not manager.config.server.admin:
        raise ForbiddenError(f"Nobody may {verb} models here; server.admin: true in the config allows it")
    manager.find(name)


def _require_json(request: AnyRequest) -> None:
    # A browser sends forms to other origins without a preflight request; JSON it does not.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {"", "application/json"}:
        raise RequestError(f"Content-Type is {media_type[:80]!r}; it must be application/json", status=415)
