"""The Open Inference Protocol over REST, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Callable

from litestar.handlers import BaseRouteHandler

from appliance.api.oip import repository, v1, v2
from appliance.api.request_body import BodyReader
from appliance.api.route_tags import tag_protocol
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager


def routes(
    manager: ModelManager, health: Callable[[], HealthReport], body_reader: BodyReader
) -> list[BaseRouteHandler]:
    """Return the routes of both versions and of the model repository."""
    return [
        *tag_protocol("oip_v1", v1.routes(manager, body_reader)),
        *tag_protocol("oip_v2", v2.routes(manager, health, body_reader)),
        *tag_protocol("oip_v2", repository.routes(manager, body_reader)),
    ]
