"""
The probes: liveness, readiness and start-up, each with a body that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from litestar import Response
from litestar.enums import HttpMethod, MediaType
from litestar.handlers import BaseRouteHandler, route

from appliance.lifecycle import Lifecycle


def routes(lifecycle: Lifecycle) -> Sequence[BaseRouteHandler]:
    """
    `/livez`, `/readyz` and `/startupz`; `/health` and `/ping` mean readiness, as they do for vLLM and SageMaker.
    """
    return [
        _probe(["/livez"], "live", lambda: lifecycle.is_live, lifecycle),
        _probe(["/readyz", "/health", "/ping"], "ready", lambda: lifecycle.is_ready, lifecycle),
        _probe(["/startupz"], "started", lambda: lifecycle.has_started, lifecycle),
    ]


def _probe(paths: list[str], word: str, is_good: Callable[[], bool], lifecycle: Lifecycle) -> BaseRouteHandler:
    # HEAD as well: load balancers probe with it.
    @route(paths, http_method=[HttpMethod.GET, HttpMethod.HEAD], name=word, media_type=MediaType.JSON)
    async def probe() -> Response[dict[str, object]]:
        good = is_good()
        return Response(
            {
                "status": word if good else f"not {word}",
                "models": [entry.describe() for entry in lifecycle.entries],
            },
            status_code=200 if good else 503,
            headers={} if good else {"Retry-After": str(lifecycle.retry_after)},
        )

    return probe
