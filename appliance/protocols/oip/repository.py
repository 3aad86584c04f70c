"""
The models of the config as a repository.

Source: https://github.com/triton-inference-server/server, protocol/extension_model_repository.md
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import post
from litestar.handlers import BaseRouteHandler

from appliance.lifecycle import Lifecycle
from appliance.protocols.clients import AnyRequest, whole_body
from appliance.protocols.oip import metadata
from appliance.tensors.wire import decoded


class _Asked(msgspec.Struct):
    ready: bool = False


def routes(lifecycle: Lifecycle) -> list[BaseRouteHandler]:
    """
    ``POST /v2/repository/index``: every name of every model, or of those that are ready, with its state.
    """

    @post("/v2/repository/index", name="v2-index", status_code=200)
    async def index(request: AnyRequest) -> list[dict[str, Any]]:  # Any: JSON values
        body = await whole_body(request)
        asked = decoded(body, _Asked) if body else _Asked()
        return metadata.listed(lifecycle, only_ready=asked.ready)

    return [index]
