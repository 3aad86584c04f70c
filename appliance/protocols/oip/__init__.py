"""
The Open Inference Protocol over REST: its first version, and its second.
"""

from __future__ import annotations

from collections.abc import Callable

from litestar.handlers import BaseRouteHandler

from appliance.lifecycle import Lifecycle, Standing
from appliance.protocols.oip import v1, v2


def routes(lifecycle: Lifecycle, standing: Callable[[], Standing], most_bytes: int) -> list[BaseRouteHandler]:
    """
    The routes of both versions; `most_bytes` is the size a body may have once it is decompressed.
    """
    return [*v1.routes(lifecycle, most_bytes), *v2.routes(lifecycle, standing, most_bytes)]
