"""Metrics of several processes as one scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from appliance.models.health import HealthReport
from appliance.server.worker_health import MetricFamily, WorkerSnapshot, merged

STOPPED = HealthReport(is_live=True, is_ready=False, has_started=True, retry_after=1, models=[])


def _process(calls: int, seconds: float) -> list[MetricFamily]:
    """What a process has after so many calls, one of them so long."""
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["model"], registry=registry).labels("a").inc(calls)
    Gauge("running", "Running.", registry=registry).set(calls)
    Histogram("seconds", "Seconds.", buckets=[1, 10], registry=registry).observe(seconds)
    return [MetricFamily.of(metric) for metric in registry.collect()]


def _merged(*workers: list[MetricFamily]) -> Iterable[Metric]:
    return [each.metric() for each in merged((number, each) for number, own in enumerate(workers) for each in own)]


class _FixedCollector(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> list[Metric]:
        return self._metrics


def _scrape(metrics: Iterable[Metric]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(_FixedCollector(metrics)).decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def test_counts_are_summed_and_states_keep_their_worker() -> None:
    """A counter and each bucket of a histogram is the sum; a gauge is there once for each worker."""
    scraped = _scrape(_merged(_process(3, 0.5), _process(4, 5)))

    assert scraped["calls_total", (("model", "a"),)] == 7
    assert scraped["seconds_bucket", (("le", "1.0"),)] == 1
    assert scraped["seconds_bucket", (("le", "10.0"),)] == 2
    assert scraped["seconds_sum", ()] == 5.5
    assert scraped["running", (("worker", "0"),)] == 3
    assert scraped["running", (("worker", "1"),)] == 4


def _shared_gauge(value: float, moment: float) -> list[MetricFamily]:
    """What a process was told of an engine it shares, at that moment."""
    metric = Metric("waiting", "Waiting.", "gauge")
    metric.add_sample("waiting", {"engine": "0"}, value, timestamp=moment)
    return [MetricFamily.of(metric)]


def test_of_what_all_share_there_is_the_latest() -> None:
    """An engine tells one worker how it stands, and the next time another one."""
    scraped = _scrape(_merged(_shared_gauge(7, 20.5), _shared_gauge(9, 10), _shared_gauge(0, 0)))

    assert scraped == {("waiting", (("engine", "0"),)): 7}


def test_what_a_dead_worker_counted_still_counts() -> None:
    """A count never goes down; what a dead worker was doing is gone."""
    first = WorkerSnapshot(1, 0.0, STOPPED, _process(10, 5), [])
    second = WorkerSnapshot(2, 0.0, STOPPED, _process(20, 5), first.counts())
    scraped = _scrape(_merged(second.counts(), _process(1, 5)))

    assert scraped["calls_total", (("model", "a"),)] == 31
    assert scraped["seconds_count", ()] == 3
    assert ("running", (("worker", "0"),)) not in scraped


def test_a_count_began_when_the_first_of_them_did() -> None:
    """Times of beginning are not summed."""
    first, second = _process(1, 1), _process(1, 1)
    began = [value for (name, _), (_, value) in first[0].values.items() if name.endswith("_created")]
    scraped = _scrape(_merged(first, second))

    assert [scraped["calls_created", (("model", "a"),)]] == began
