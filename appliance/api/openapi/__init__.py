"""The document that describes every route, and a page to read it; both are here, and need nothing from elsewhere.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litestar import MediaType, Response, get
from litestar.handlers import BaseRouteHandler

from appliance.api.oip.inference import VERSION
from appliance.api.oip.metadata import server_version
from appliance.api.openapi.catalogue import DocumentedRoute, operations
from appliance.api.openapi.docs_page import PAGE, policy_of
from appliance.api.openapi.schemas import SCHEMAS, ref
from appliance.core.model import Operation
from appliance.models.manager import ModelManager


def routes(manager: ModelManager) -> list[BaseRouteHandler]:
    """`/schema/openapi.json` and `/schema`."""

    @get("/schema/openapi.json", name="openapi", sync_to_thread=False)
    def show_document() -> dict[str, Any]:  # Any: JSON values
        return document([name for _, name in manager.visible()], manager.authorizer.may_request)

    @get("/schema", name="openapi-page", sync_to_thread=False)
    def show_page() -> Response[str]:
        return Response(PAGE, media_type=MediaType.HTML, headers={"Content-Security-Policy": policy_of(PAGE)})

    return [show_document, show_page]


def document(
    names: Sequence[str], may_request: Callable[[Operation], bool] = lambda _: True
) -> dict[str, Any]:  # Any: JSON
    """Every operation that may be asked for, by path and method, for models of these names."""
    values = {"name": list(names), "version": [VERSION]}
    paths: dict[str, Any] = {}
    for told in operations():
        if told.operation is not None and not may_request(told.operation):
            continue
        paths.setdefault(told.path, {})[told.method] = _operation(told, values)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Appliance", "version": server_version()},
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(told: DocumentedRoute, values: Mapping[str, Sequence[str]]) -> dict[str, Any]:  # Any: JSON values
    made: dict[str, Any] = {
        "summary": told.summary,
        "operationId": f"{told.method}{re.sub(r'[^A-Za-z0-9]+', '_', told.path)}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"enum": values[name]}}
            for name in re.findall(r"{(\w+)}", told.path)
        ],
        "responses": {
            "200": {"description": "It is answered."},
            "default": {"description": "It is refused.", "content": _json(told.error)},
        },
    }
    if told.answer is not None:
        made["responses"]["200"]["content"] = _json(told.answer)
    if told.answer in {"Probe", "Live", "Ready", "ModelReady"}:
        made["responses"]["503"] = {"description": "It is not so.", "content": _json(told.answer)}
    if told.request is not None:
        made["requestBody"] = {"required": not told.takes_nothing, "content": _json(told.request)}
    return made


def _json(name: str) -> dict[str, Any]:  # Any: JSON values
    return {"application/json": {"schema": ref(name)}}
