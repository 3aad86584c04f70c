"""Prometheus metrics of upstreams and response caches.

They are in the registry of the process, where `/metrics` and the metrics of several workers find them.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, Histogram

from appliance.proxy.circuit_breaker import Circuit, CircuitBreaker

_UPSTREAM = ("model", "upstream")

REQUESTS = Counter(
    "appliance_upstream_requests",
    "Requests to an upstream by their end: 2xx to 5xx, no_answer, timeout, cut_off, or left by the client.",
    (*_UPSTREAM, "end"),
)
FIRST_BYTE = Histogram(
    "appliance_upstream_first_byte_seconds",
    "From a request to the first byte of its response.",
    _UPSTREAM,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RUNNING = Gauge("appliance_upstream_running", "Requests to an upstream that are running.", _UPSTREAM)
HEALTHY = Gauge("appliance_upstream_healthy", "1 if the last health checks succeeded.", _UPSTREAM)
CIRCUIT = Gauge("appliance_upstream_circuit", "1 for the state of the circuit breaker.", (*_UPSTREAM, "circuit"))
PRIORITY = Gauge("appliance_upstream_priority", "Priority of an upstream; 0 gets requests first.", _UPSTREAM)
RETRIES = Counter("appliance_upstream_retries", "Requests that were retried.", ("model",))
CACHE = Counter("appliance_cache_requests", "Requests that the cache could answer, by result.", ("model", "result"))
CACHE_BYTES = Gauge("appliance_cache_bytes", "Memory of cached responses.", ("model",))


# Finding the child of a metric for its labels takes longer than counting in it.
@lru_cache(1024)
def requests(model: str, upstream: str, end: str) -> Counter:
    """Return the counter of the requests to an upstream that end so."""
    return REQUESTS.labels(model, upstream, end)


class UpstreamState(Protocol):
    """What metrics read from an upstream when they are collected."""

    inflight: int
    is_healthy: bool
    priority: int
    breaker: CircuitBreaker


class CacheState(Protocol):
    """What metrics read from a cache when they are collected."""

    size: int


# Upstreams and caches by their labels, the oldest first: while a reload replaces a model, two have the same labels.
_tracked: dict[tuple[str, ...], list[Any]] = {}


def track_upstream(labels: tuple[str, str], upstream: UpstreamState) -> None:
    """Report an upstream from now on."""
    upstreams: list[UpstreamState] = _tracked.setdefault(labels, [])
    upstreams.append(upstream)
    RUNNING.labels(*labels).set_function(lambda: sum(each.inflight for each in upstreams))
    HEALTHY.labels(*labels).set_function(lambda: upstreams[0].is_healthy)
    PRIORITY.labels(*labels).set_function(lambda: upstreams[0].priority)
    for circuit in Circuit:
        CIRCUIT.labels(*labels, circuit).set_function(
            partial(lambda state: upstreams[0].breaker.circuit is state, circuit)
        )


def untrack_upstream(labels: tuple[str, str], upstream: UpstreamState) -> None:
    """Report it no longer; safe to call twice."""
    if _remove(labels, upstream):
        RUNNING.remove(*labels)
        HEALTHY.remove(*labels)
        PRIORITY.remove(*labels)
        for circuit in Circuit:
            CIRCUIT.remove(*labels, circuit)


def track_cache(model: str, cache: CacheState) -> None:
    """Report the memory of a cache from now on."""
    caches: list[CacheState] = _tracked.setdefault((model,), [])
    caches.append(cache)
    CACHE_BYTES.labels(model).set_function(lambda: sum(each.size for each in caches))


def untrack_cache(model: str, cache: CacheState) -> None:
    """Report it no longer; safe to call twice."""
    if _remove((model,), cache):
        CACHE_BYTES.remove(model)


def _remove(labels: tuple[str, ...], source: object) -> bool:
    """Remove an object, and return whether no other one has its labels."""
    sources = _tracked.get(labels, [])
    if sources == [source]:
        # The list keeps it: a collection in another thread may read it until its labels are removed.
        del _tracked[labels]
        return True
    if source in sources:
        sources.remove(source)
    return False
