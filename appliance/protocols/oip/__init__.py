"""
The Open Inference Protocol over REST: its first version, and its second.
"""

from __future__ import annotations

from collections.abc import Callable

from litestar.handlers import BaseRouteHandler

from appliance.lifecycle import Lifecycle, Standing
from appliance.protocols.oip import repository, v1, v2


def routes(lifecycle: Lifecycle, standing: Callable[[], Standing], most_bytes: int) -> list[BaseRouteHandler]:
    """
    The routes of both versions; `most_bytes` is the size a body may have once it is decompressed.
    """
    rest = [*v2.routes(lifecycle, standing, most_bytes), *repository.routes(lifecycle)]
    return [*v1.routes(lifecycle, most_bytes), *rest]
