"""Liveness, readiness and startup probes, each with a body that gives the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from litestar import Response
from litestar.enums import HttpMethod, MediaType
from litestar.handlers import BaseRouteHandler, route

from appliance.api.route_tags import tag_probes
from appliance.auth import PUBLIC
from appliance.models.health import HealthReport


class _Probe(TypedDict):
    status: str
    models: Sequence[Mapping[str, Any]]  # Any: JSON values


class ProbeResponse(_Probe, total=False):
    """The body of a probe."""

    reason: str
    """Why the server is not healthy, if no model is the cause."""
    config: Mapping[str, Any]  # Any: JSON values
    workers: Sequence[Mapping[str, Any]]  # Any: JSON values


def routes(health: Callable[[], HealthReport]) -> Sequence[BaseRouteHandler]:
    """Return `/livez`, `/readyz` and `/startupz`; `/health` and `/ping` are readiness, as in vLLM and SageMaker."""
    probes = [
        _probe(["/livez"], "live", lambda report: report.is_live, health),
        _probe(["/readyz", "/health", "/ping"], "ready", lambda report: report.is_ready, health),
        _probe(["/startupz"], "started", lambda report: report.has_started, health),
    ]
    return tag_probes(probes)


def _probe(
    paths: list[str], word: str, is_good: Callable[[HealthReport], bool], health: Callable[[], HealthReport]
) -> BaseRouteHandler:
    # Some load balancers probe with HEAD.
    @route(
        paths, http_method=[HttpMethod.GET, HttpMethod.HEAD], name=word, media_type=MediaType.JSON, opt={PUBLIC: True}
    )
    async def probe() -> Response[ProbeResponse]:
        report = health()
        is_up = is_good(report)
        body: ProbeResponse = {"status": word if is_up else f"not {word}", "models": report.models}
        if not is_up and report.reason is not None:
            body["reason"] = report.reason
        if report.config is not None:
            body["config"] = report.config
        if report.workers:
            body["workers"] = report.workers
        return Response(
            body,
            status_code=200 if is_up else 503,
            headers={} if is_up else {"Retry-After": str(report.retry_after)},
        )

    return probe
