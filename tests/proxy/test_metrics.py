"""Metrics of upstreams and caches that come and go with their models."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.proxy import metrics


@dataclass
class Cache:
    """A cache with so many bytes."""

    size: int


def test_a_cache_may_leave_while_its_metric_is_collected() -> None:
    """A collection in another thread that has begun still reads the value."""
    old, new = Cache(1), Cache(2)
    metrics.track_cache("leaving", old)
    metrics.track_cache("leaving", new)
    metrics.untrack_cache("leaving", old)
    metric = metrics.CACHE_BYTES.labels("leaving")

    metrics.untrack_cache("leaving", new)
    metrics.untrack_cache("leaving", new)

    assert [sample.value for family in metric.collect() for sample in family.samples] == [2]
    assert not [
        sample
        for family in metrics.CACHE_BYTES.collect()
        for sample in family.samples
        if sample.labels["model"] == "leaving"
    ]
