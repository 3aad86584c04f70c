"""Liveness, readiness and startup probes, each with a body that gives the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

from litestar import Response
from litestar.enums import HttpMethod, MediaType
from litestar.handlers import BaseRouteHandler, route

from appliance.api import PROBE
from appliance.auth import PUBLIC
from appliance.models.health import HealthReport

Health = Callable[[], HealthReport]


class _Probe(TypedDict):
    status: str
    """`live`, `ready` or `started`, or the same after `not`."""
    models: Sequence[Mapping[str, Any]]  # Any: JSON values
    """Each model of the config."""


class ProbeResponse(_Probe, total=False):
    """The body of a probe."""

    reason: str
    """Why the server is not healthy, if no model is the cause."""
    config: Mapping[str, Any]  # Any: JSON values
    """The config file that is served, what is wrong with a newer one, and `new_models`, which are not served yet."""
    workers: Sequence[Mapping[str, Any]]  # Any: JSON values
    """Each process, if there are several."""


def routes(health: Health) -> list[BaseRouteHandler]:
    """Return `/livez`, `/readyz` and `/startupz`; `/health` and `/ping` are readiness, as in vLLM and SageMaker.

    vLLM takes POST for `/ping`, too.
    """
    is_ready, body = (lambda report: report.is_ready), partial(_body, "ready")
    return [
        probe(["/livez"], health, lambda report: report.is_live, partial(_body, "live")),
        probe(["/readyz", "/health"], health, is_ready, body),
        probe(["/ping"], health, is_ready, body, more_methods=[HttpMethod.POST]),
        probe(["/startupz"], health, lambda report: report.has_started, partial(_body, "started")),
    ]


def probe(
    paths: Sequence[str],
    health: Health,
    is_good: Callable[[HealthReport], bool],
    body: Callable[[HealthReport, bool], Mapping[str, Any]],  # Any: JSON values
    opt: Mapping[str, str] = {},
    more_methods: Sequence[HttpMethod] = (),
) -> BaseRouteHandler:
    """Return a probe that responds with 200 if the report is good, else with 503; `body` takes both."""

    # Some load balancers probe with HEAD.
    @route(
        paths,
        http_method=[HttpMethod.GET, HttpMethod.HEAD, *more_methods],
        media_type=MediaType.JSON,
        opt={PUBLIC: True, PROBE: True, **opt},
    )
    async def answer() -> Response[Mapping[str, Any]]:
        report = health()
        is_up = is_good(report)
        headers = {} if is_up else {"Retry-After": str(report.retry_after)}
        return Response(body(report, is_up), status_code=200 if is_up else 503, headers=headers)

    return answer


def _body(word: str, report: HealthReport, is_up: bool) -> ProbeResponse:
    body: ProbeResponse = {"status": word if is_up else f"not {word}", "models": report.models}
    if not is_up and report.reason is not None:
        body["reason"] = report.reason
    if report.config is not None:
        body["config"] = report.config
    if report.workers:
        body["workers"] = report.workers
    return body
