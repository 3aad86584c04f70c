"""
Metrics for Prometheus: vLLM's under their own names, and where each model stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from litestar import Response, get
from litestar.handlers import BaseRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.lifecycle import Lifecycle, State

Gather = Callable[[], Iterable[Metric]]
"""
Reads every metric there is.
"""


def routes(gather: Gather) -> list[BaseRouteHandler]:
    """
    `GET /metrics`.
    """

    @get("/metrics", name="metrics")
    async def metrics() -> Response[bytes]:
        return Response(generate_latest(_Gathered(gather)), media_type=CONTENT_TYPE_LATEST)

    return [metrics]


def of_process(lifecycle: Lifecycle) -> Iterable[Metric]:
    """
    Every metric of this process; read from the lifecycle, so they cannot disagree with the probes.
    """
    yield from REGISTRY.collect()
    state = GaugeMetricFamily("appliance_model_state", "1 for the state a model is in.", labels=["model", "state"])
    running = GaugeMetricFamily("appliance_calls_running", "Calls under way.", labels=["model"])
    for entry in lifecycle.entries:
        running.add_metric([entry.section.name], entry.running)
        for each in State:
            state.add_metric([entry.section.name, each], float(entry.state is each))
    yield state
    yield running


class _Gathered(Collector):
    """
    What the exposition format is written from.
    """

    def __init__(self, gather: Gather) -> None:
        self._gather = gather

    def collect(self) -> Iterable[Metric]:
        return self._gather()
