"""Metrics of several processes as one scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

Labels = Mapping[str, str]

# What only grows has a sum that means something; of anything else each process has a value of its own.
_SUMMED = frozenset({"counter", "histogram", "summary"})

# When a count began: a time, which is not summed either.
_CREATED = "_created"


@dataclass(frozen=True, slots=True)
class MetricFamilySum:
    """
    A metric as one process has it: its samples are name, labels, value and, of what is everybody's, how late that is.
    """

    name: str
    documentation: str
    type: str
    samples: Sequence[tuple[str, Labels, float, float | None]]

    @staticmethod
    def of(metric: Metric) -> MetricFamilySum:
        """What prometheus_client collected."""
        samples = [(each.name, each.labels, float(each.value), _moment(each)) for each in metric.samples]
        return MetricFamilySum(metric.name, metric.documentation, metric.type, samples)


def _moment(sample: Sample) -> float | None:
    return None if sample.timestamp is None else float(sample.timestamp)


def counted(families: Iterable[MetricFamilySum]) -> list[MetricFamilySum]:
    """What remains of a process when it is gone: its counts, one family for each name."""
    sums: dict[str, _Sum] = {}
    for family in families:
        if family.type in _SUMMED:
            sums.setdefault(family.name, _Sum(family)).add(family)
    return [each.family() for each in sums.values()]


def merged(processes: Mapping[int, tuple[Sequence[MetricFamilySum], Sequence[MetricFamilySum]]]) -> Iterator[Metric]:
    """One family for each name: counts of all processes and their pasts summed, the rest with its process's number.

    What is told with a time is of something that all of them share: of it there is the latest.

    `processes` has for each worker the families it has and those of its past.
    """
    sums: dict[str, _Sum] = {}
    for number, (families, past) in processes.items():
        for family in (*families, *past):
            sums.setdefault(family.name, _Sum(family)).add(family, number)
    for each in sums.values():
        yield each.metric()


class _Sum:
    """A family under way."""

    def __init__(self, first: MetricFamilySum) -> None:
        self._first = first
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._moments: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, family: MetricFamilySum, number: int | None = None) -> None:
        for name, labels, value, moment in family.samples:
            of_all = moment is not None or family.type in _SUMMED
            key = name, (*labels.items(), *({} if of_all else {"worker": str(number)}).items())
            if key not in self._values:
                self._values[key], self._moments[key] = value, moment or 0
            elif moment is not None:
                latest = self._moments[key], self._values[key]
                self._moments[key], self._values[key] = max(latest, (moment, value))
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
