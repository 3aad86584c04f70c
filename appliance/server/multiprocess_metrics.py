"""Metrics of several processes, combined for one scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

Labels = Mapping[str, str]

# Only what grows can be summed; of all else each process has a value of its own.
_SUMMED = frozenset({"counter", "histogram", "summary"})

# The time when a counter was created, which is not summed either.
_CREATED = "_created"


@dataclass(frozen=True, slots=True)
class MetricFamilySum:
    """A metric family of one process; its samples are name, labels, value, and the time of values that all share."""

    name: str
    documentation: str
    type: str
    samples: Sequence[tuple[str, Labels, float, float | None]]

    @staticmethod
    def of(metric: Metric) -> MetricFamilySum:
        """Return a family that prometheus_client collected."""
        samples = [(each.name, each.labels, float(each.value), _time(each)) for each in metric.samples]
        return MetricFamilySum(metric.name, metric.documentation, metric.type, samples)


def _time(sample: Sample) -> float | None:
    return None if sample.timestamp is None else float(sample.timestamp)


def counted(families: Iterable[MetricFamilySum]) -> list[MetricFamilySum]:
    """Return what remains of a process that has ended: its counts, one family for each name."""
    sums: dict[str, _Sum] = {}
    for family in families:
        if family.type in _SUMMED:
            sums.setdefault(family.name, _Sum(family)).add(family)
    return [each.family() for each in sums.values()]


def merged(processes: Mapping[int, tuple[Sequence[MetricFamilySum], Sequence[MetricFamilySum]]]) -> Iterator[Metric]:
    """Yield one family for each name: counts are summed, all else is labelled with the worker's number.

    A value with a time belongs to something that all workers share; the latest is taken. `processes` has for each
    worker its families, and those of the workers that had its slot before.
    """
    sums: dict[str, _Sum] = {}
    for number, (families, past) in processes.items():
        for family in (*families, *past):
            sums.setdefault(family.name, _Sum(family)).add(family, number)
    for each in sums.values():
        yield each.metric()


class _Sum:
    """A family whose samples are being added up."""

    def __init__(self, first: MetricFamilySum) -> None:
        self._first = first
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._times: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, family: MetricFamilySum, number: int | None = None) -> None:
        for name, labels, value, time in family.samples:
            is_shared = time is not None or family.type in _SUMMED
            key = name, (*labels.items(), *({} if is_shared else {"worker": str(number)}).items())
            if key not in self._values:
                self._values[key], self._times[key] = value, time or 0
            elif time is not None:
                latest = self._times[key], self._values[key]
                self._times[key], self._values[key] = max(latest, (time, value))
            elif name.endswith(_CREATED):
                self._values[key] = min(self._values[key], value)
            else:
                self._values[key] += value

    def family(self) -> MetricFamilySum:
        samples = [(name, dict(labels), value, None) for (name, labels), value in self._values.items()]
        return MetricFamilySum(self._first.name, self._first.documentation, self._first.type, samples)

    def metric(self) -> Metric:
        metric = Metric(self._first.name, self._first.documentation, self._first.type)
        for (name, labels), value in self._values.items():
            metric.add_sample(name, dict(labels), value)
        return metric
