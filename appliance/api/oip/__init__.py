"""The Open Inference Protocol over REST: its first version, and its second."""

from __future__ import annotations

from collections.abc import Callable

from litestar.handlers import BaseRouteHandler

from appliance.api.oip import repository, v1, v2
from appliance.api.request_body import BodyReader
from appliance.api.route_tags import tag_protocol
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager


def routes(manager: ModelManager, standing: Callable[[], HealthReport], intake: BodyReader) -> list[BaseRouteHandler]:
    """The routes of both versions, and of the repository."""
    return [
        *tag_protocol("oip_v1", v1.routes(manager, intake)),
        *tag_protocol("oip_v2", v2.routes(manager, standing, intake)),
        *tag_protocol("oip_v2", repository.routes(manager, intake)),
    ]
