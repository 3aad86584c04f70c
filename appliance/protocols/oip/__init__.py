"""
The Open Inference Protocol over REST: its first version, and its second.
"""

from __future__ import annotations

from collections.abc import Callable

from litestar.handlers import BaseRouteHandler

from appliance.config.server import ServerSection
from appliance.lifecycle import Lifecycle, Standing
from appliance.protocols.oip import repository, v1, v2


def routes(lifecycle: Lifecycle, standing: Callable[[], Standing], server: ServerSection) -> list[BaseRouteHandler]:
    """
    The routes of both versions, and of the repository.
    """
    most_bytes = server.max_body_bytes
    return [
        *v1.routes(lifecycle, most_bytes),
        *v2.routes(lifecycle, standing, most_bytes),
        *repository.routes(lifecycle),
    ]
