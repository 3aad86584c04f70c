"""
The Open Inference Protocol over REST: its first version, and its second.
"""

from __future__ import annotations

from collections.abc import Callable

from litestar.handlers import BaseRouteHandler

from appliance.api.oip import repository, v1, v2
from appliance.api.request_body import Intake
from appliance.api.route_tags import speaking
from appliance.models.manager import HealthReport, ModelManager


def routes(lifecycle: ModelManager, standing: Callable[[], HealthReport], intake: Intake) -> list[BaseRouteHandler]:
    """
    The routes of both versions, and of the repository.
    """
    return [
        *speaking("oip_v1", v1.routes(lifecycle, intake)),
        *speaking("oip_v2", v2.routes(lifecycle, standing, intake)),
        *speaking("oip_v2", repository.routes(lifecycle, intake)),
    ]
