"""Metrics for Prometheus: vLLM's under their own names, what is counted of requests, and where each model stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from litestar import Response, get
from litestar.handlers import BaseRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.api.route_tags import tag_probes
from appliance.models.fetch import FetchProgress
from appliance.models.manager import ModelManager
from appliance.models.state import State

_AMOUNTS: tuple[tuple[str, str, Callable[[FetchProgress], float | None]], ...] = (
    ("appliance_fetched_bytes", "Bytes of the model that are here.", lambda progress: progress.fetched),
    ("appliance_fetch_total_bytes", "Bytes of the model in all, once known.", lambda progress: progress.total),
    ("appliance_fetch_bytes_per_second", "Bytes fetched in a second, of late.", lambda progress: progress.rate),
)

Gather = Callable[[], Iterable[Metric]]
"""Reads every metric there is."""


def routes(gather: Gather, require: Callable[[], None] = lambda: None) -> list[BaseRouteHandler]:
    """`GET /metrics`; `require` raises for a caller that may not read them."""

    @get("/metrics", name="metrics")
    async def metrics() -> Response[bytes]:
        require()
        return Response(generate_latest(_Gathered(gather)), media_type=CONTENT_TYPE_LATEST)

    return tag_probes([metrics])


def of_models(manager: ModelManager) -> Sequence[Metric]:
    """The metrics of the models' states; read from the lifecycle, so they cannot disagree with the probes.

    All others of this process are in its `prometheus_client.REGISTRY`.
    """
    state = GaugeMetricFamily("appliance_model_state", "1 for the state a model is in.", labels=["model", "state"])
    running = GaugeMetricFamily("appliance_requests_running", "Requests under way.", labels=["model"])
    queued = GaugeMetricFamily("appliance_requests_queued", "Requests that wait for their turn.", labels=["model"])
    restarts = CounterMetricFamily(
        "appliance_model_restarts", "How often a model was started anew because it died.", labels=["model"]
    )
    phases = GaugeMetricFamily(
        "appliance_load_phase_seconds",
        "How long each phase of the last load took, or takes.",
        labels=["model", "phase"],
    )
    parts = GaugeMetricFamily(
        "appliance_load_part_seconds",
        "What the phase loading of the last load was spent on.",
        labels=["model", "part"],
    )
    amounts = [GaugeMetricFamily(name, meaning, labels=["model"]) for name, meaning, _ in _AMOUNTS]
    for entry in manager.statuses:
        running.add_metric([entry.config.name], entry.running)
        queued.add_metric([entry.config.name], entry.queued)
        restarts.add_metric([entry.config.name], entry.restarts)
        for phase, seconds in entry.timings.seconds().items():
            phases.add_metric([entry.config.name, phase], seconds)
        for part, seconds in entry.load_timings().items():
            parts.add_metric([entry.config.name, part], seconds)
        for each in State:
            state.add_metric([entry.config.name, each], float(entry.state is each))
        if entry.progress is not None:
            for family, (_, _, read) in zip(amounts, _AMOUNTS, strict=True):
                if (value := read(entry.progress)) is not None:
                    family.add_metric([entry.config.name], value)
    return [state, running, queued, restarts, phases, parts, *amounts]


class _Gathered(Collector):
    """What the exposition format is written from."""

    def __init__(self, gather: Gather) -> None:
        self._gather = gather

    def collect(self) -> Iterable[Metric]:
        return self._gather()
