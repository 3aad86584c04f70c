"""vLLM's own metrics, of every engine of this process.

vLLM takes the metrics of an engine out of the process's registry when another one starts, so each engine's are moved
to where it does not look, and read from there under the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# How it tells its own from others.
_PREFIX = "vllm:"


class EngineMetrics(Collector):
    """The metrics of engines that run, each name once."""

    def __init__(self) -> None:
        self._engines: dict[object, tuple[CollectorRegistry, Mapping[str, float] | None]] = {}

    def collect(self) -> Iterable[Metric]:
        """What a scrape gets; engines of one process differ in the label of their model."""
        families: dict[str, Metric] = {}
        for registry, told_at in list(self._engines.values()):
            for family in registry.collect():
                if told_at is not None and family.type == "gauge":
                    family.samples = [_as_of(sample, told_at) for sample in family.samples]
                if family.name in families:
                    families[family.name].samples.extend(family.samples)
                else:
                    families[family.name] = family
        return families.values()

    def describe(self) -> Iterable[Metric]:
        """No name is taken: the next engine registers the same ones."""
        return ()

    def adopt(self, engine: object, told_at: Mapping[str, float] | None = None) -> None:
        """Take over what vLLM has registered since the last time, as this engine's.

        Of several front ends each step of an engine core tells one alone how the core stands. `told_at` is when that
        was this one, by the core's number, on the clock that all processes of a machine share; its samples get that as
        their time. None where there are no others.
        """
        registry = CollectorRegistry()
        for collector in list(REGISTRY._collector_to_names):
            if getattr(collector, "_name", "").startswith(_PREFIX):
                REGISTRY.unregister(collector)
                registry.register(collector)
        self._engines[engine] = registry, told_at

    def drop(self, engine: object) -> None:
        """Forget an engine that ended; safe to call twice."""
        self._engines.pop(engine, None)


def _as_of(sample: Sample, told_at: Mapping[str, float]) -> Sample:
    core = sample.labels.get("engine")
    return sample._replace(timestamp=max(told_at.values(), default=0.0) if core is None else told_at.get(core, 0.0))


ENGINES = EngineMetrics()
"""
Those of this process, beside whatever else its registry holds.
"""
REGISTRY.register(ENGINES)
