"""Metrics for Prometheus: those of vLLM and of requests, and the state of each model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

from litestar import Response, get
from litestar.handlers import BaseRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from appliance.api import PROBE
from appliance.models.manager import ModelManager
from appliance.models.state import State

Gather = Callable[[], Iterable[Metric]]
"""Returns all metrics."""


def routes(gather: Gather, require: Callable[[], None] = lambda: None) -> list[BaseRouteHandler]:
    """Return `/metrics`; `require` raises for callers that may not read it."""

    @get("/metrics", opt={PROBE: True})
    async def metrics() -> Response[bytes]:
        require()
        # As a header, because Litestar adds a charset to media types.
        # It has the one method that is called.
        body = generate_latest(SimpleNamespace(collect=gather))
        return Response(body, headers={"content-type": CONTENT_TYPE_LATEST})

    return [metrics]


def of_models(manager: ModelManager) -> Sequence[Metric]:
    """Return the metrics of the models' states, from the same objects as the probes.

    The other metrics of this process are in `prometheus_client.REGISTRY`.
    """

    def gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"appliance_{name}", documentation, labels=["model", *labels])

    state = gauge("model_state", "1 for the state that a model is in.", "state")
    running = gauge("requests_running", "Requests in progress.")
    queued = gauge("requests_queued", "Requests in the queue.")
    restarts = CounterMetricFamily("appliance_model_restarts", "Restarts of a model that failed.", labels=["model"])
    phases = gauge("load_phase_seconds", "Duration of each phase of the last load, which may be running.", "phase")
    parts = gauge("load_part_seconds", "Duration of each part of the phase loading of the last load.", "part")
    fetched = gauge("fetched_bytes", "Downloaded bytes of the model.")
    total = gauge("fetch_total_bytes", "Size of the model, once known.")
    rate = gauge("fetch_bytes_per_second", "Recent download rate.")
    for status in manager.statuses:
        name = status.config.name
        running.add_metric([name], status.running)
        queued.add_metric([name], status.queued)
        restarts.add_metric([name], status.restarts)
        for phase, seconds in status.timings.seconds().items():
            phases.add_metric([name, phase], seconds)
        for part, seconds in status.load_timings().items():
            parts.add_metric([name, part], seconds)
        for each in State:
            state.add_metric([name, each], float(status.state is each))
        if (progress := status.progress) is not None:
            for family, value in ((fetched, progress.fetched), (total, progress.total), (rate, progress.rate)):
                if value is not None:
                    family.add_metric([name], value)
    return [state, running, queued, restarts, phases, parts, fetched, total, rate, *_of_stores(manager)]


def _of_stores(manager: ModelManager) -> Sequence[Metric]:
    """Return the sizes of what clients store."""
    objects = GaugeMetricFamily("appliance_stored_objects", "Responses, conversations or files.", labels=["store"])
    size = GaugeMetricFamily("appliance_stored_bytes", "What they take on the disk.", labels=["store"])
    # All workers have the same store; a value with a time is taken from one of them.
    at = time.monotonic() if manager.front_end.count > 1 else None
    for name, usage in manager.store_usage.items():
        objects.add_metric([name], usage.objects, at)
        size.add_metric([name], usage.bytes, at)
    return [objects, size]
