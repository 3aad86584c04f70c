"""Metrics of every engine of this process: vLLM's own, and those of others by the same names.

When an engine starts, vLLM removes the metrics of others from the process's registry. So each engine's metrics are
moved to a registry of its own, and collected from there under the same names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import IterationStats

# How vLLM tells its own metrics from others.
_PREFIX = "vllm:"


class EngineMetrics(Collector):
    """The metrics of all running engines, each name once."""

    def __init__(self) -> None:
        self._engines: dict[object, tuple[CollectorRegistry, Mapping[str, float] | None]] = {}

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all engines, which differ in the label of their model."""
        families: dict[str, Metric] = {}
        for registry, updated_at in list(self._engines.values()):
            for family in registry.collect():
                if updated_at is not None and family.type == "gauge":
                    family.samples = [_with_time(sample, updated_at) for sample in family.samples]
                if families.setdefault(family.name, family) is not family:
                    families[family.name].samples.extend(family.samples)
        return families.values()

    def describe(self) -> Iterable[Metric]:
        """Reserve no names: the next engine registers the same ones."""
        return ()

    def adopt(self, engine: object, updated_at: Mapping[str, float] | None = None) -> None:
        """Take over what vLLM has registered since the last call, as this engine's metrics.

        With several front ends, each step of an engine core sends its statistics to one of them. `updated_at` has the
        time of the last one here, by core, on the clock that all processes of a machine share; gauges get it as their
        time. None with a single front end.
        """
        registry = CollectorRegistry()
        # Private, but prometheus_client has no other list of collectors.
        for collector in list(REGISTRY._collector_to_names):
            if getattr(collector, "_name", "").startswith(_PREFIX):
                REGISTRY.unregister(collector)
                registry.register(collector)
        self.add(engine, registry, updated_at)

    def add(self, engine: object, registry: CollectorRegistry, updated_at: Mapping[str, float] | None = None) -> None:
        """Collect an engine's metrics from its registry; `updated_at` is that of `adopt`."""
        self._engines[engine] = registry, updated_at

    def drop(self, engine: object) -> None:
        """Forget an engine; safe to call twice."""
        self._engines.pop(engine, None)


def observe_all(histogram: Histogram, amounts: Sequence[float]) -> None:
    """Observe each of the amounts as `Histogram.observe` does, but change each bucket once."""
    # Private, as above; `observe` takes a lock for the sum and for a bucket.
    histogram._sum.inc(sum(amounts))
    for index, number in Counter([bisect_left(histogram._upper_bounds, amount) for amount in amounts]).items():
        histogram._buckets[index].inc(number)


def has_tokens_only(stats: IterationStats) -> bool:
    """Whether in a step no request began, ended, or was preempted; all else that vLLM counts is then zero."""
    return not (stats.time_to_first_tokens_iter or stats.finished_requests or stats.num_preempted_reqs)


def _with_time(sample: Sample, updated_at: Mapping[str, float]) -> Sample:
    core = sample.labels.get("engine")
    return sample._replace(timestamp=max(updated_at.values(), default=0.0) if core is None else updated_at.get(core, 0))


ENGINES = EngineMetrics()
"""The metrics of this process's engines."""
REGISTRY.register(ENGINES)
