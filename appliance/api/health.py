"""The probes: liveness, readiness and start-up, each with a body that says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from litestar import Response
from litestar.enums import HttpMethod, MediaType
from litestar.handlers import BaseRouteHandler, route

from appliance.api.route_tags import tag_probes
from appliance.auth import PUBLIC
from appliance.models.health import HealthReport


def routes(standing: Callable[[], HealthReport]) -> Sequence[BaseRouteHandler]:
    """`/livez`, `/readyz` and `/startupz`; `/health` and `/ping` mean readiness, as they do for vLLM and SageMaker."""
    probes = [
        _probe(["/livez"], "live", lambda now: now.is_live, standing),
        _probe(["/readyz", "/health", "/ping"], "ready", lambda now: now.is_ready, standing),
        _probe(["/startupz"], "started", lambda now: now.has_started, standing),
    ]
    return tag_probes(probes)


def _probe(
    paths: list[str], word: str, is_good: Callable[[HealthReport], bool], standing: Callable[[], HealthReport]
) -> BaseRouteHandler:
    # HEAD as well: load balancers probe with it.
    @route(
        paths, http_method=[HttpMethod.GET, HttpMethod.HEAD], name=word, media_type=MediaType.JSON, opt={PUBLIC: True}
    )
    async def probe() -> Response[dict[str, object]]:
        now = standing()
        good = is_good(now)
        workers = {"workers": now.workers} if now.workers else {}
        config = {} if now.config is None else {"config": now.config}
        reason = {} if good or now.reason is None else {"reason": now.reason}
        return Response(
            {"status": word if good else f"not {word}", **reason, "models": now.models, **config, **workers},
            status_code=200 if good else 503,
            headers={} if good else {"Retry-After": str(now.retry_after)},
        )

    return probe
