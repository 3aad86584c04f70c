"""The model repository API: index, load and unload.

Source: https://github.com/triton-inference-server/server, protocol/extension_model_repository.md
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import post
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api.disconnect import AnyRequest, before_body
from appliance.api.oip import metadata
from appliance.api.request_body import BodyReader
from appliance.core.errors import ForbiddenError, RequestError
from appliance.models.manager import ModelManager
from appliance.tensors.codec import decode


class IndexRequest(msgspec.Struct):
    """The optional body of a request for the index."""

    ready: bool = False


def routes(manager: ModelManager, body_reader: BodyReader) -> list[BaseRouteHandler]:
    """Return the routes for the index, and for loading and unloading, which need `server.admin`."""

    @post("/v2/repository/index", name="v2-index", status_code=200)
    async def index(request: AnyRequest) -> list[metadata.RepositoryEntry]:
        body = await body_reader.json(request)
        query = decode(body, IndexRequest) if body else IndexRequest()
        return metadata.repository_index(manager, only_ready=query.ready)

    @post("/v2/repository/models/{rest:path}", name="v2-repository", status_code=200)
    async def change(request: AnyRequest, rest: FromPath[str]) -> dict[str, Any]:  # Any: JSON values
        name, _, verb = rest.removeprefix("/").rpartition("/")
        if verb not in {"load", "unload"} or not name:
            raise NotFoundException
        async with before_body(request):
            _allow(manager, verb, name)
            _require_json(request)
        # The body would say how to load the model; the config decides that.
        await body_reader.json(request)
        await (load(manager, name) if verb == "load" else unload(manager, name))
        return {"name": name, verb: True}

    return [index, change]


async def load(manager: ModelManager, name: str) -> None:
    """Load a model that was unloaded; see `ModelManager.load`.

    Raises:
        RequestError: the config does not allow it, or it cannot be done.
    """
    _allow(manager, "load", name)
    await manager.load(name)


async def unload(manager: ModelManager, name: str) -> None:
    """Unload a model; see `ModelManager.unload`.

    Raises:
        RequestError: the config does not allow it, or it cannot be done.
    """
    _allow(manager, "unload", name)
    await manager.unload(name)


def _allow(manager: ModelManager, verb: str, name: str) -> None:
    manager.authorizer.require_admin()
    if not manager.config.server.admin:
        raise ForbiddenError(f"Nobody may {verb} models here; server.admin: true in the config allows it")
    manager.find(name)


def _require_json(request: AnyRequest) -> None:
    # A browser sends forms to other origins without a preflight request; JSON it does not.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {"", "application/json"}:
        raise RequestError(f"Content-Type is {media_type[:80]!r}; it must be application/json", status=415)
