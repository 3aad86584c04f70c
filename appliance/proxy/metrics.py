"""What is counted about upstreams, for Prometheus.

Kept in its registry of the whole process, as its clients do, where `/metrics` and other workers find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from appliance.proxy.circuit_breaker import Circuit

_UPSTREAM = ("model", "upstream")

REQUESTS = Counter(
    "appliance_upstream_requests",
    "Requests to an upstream by their end: 2xx to 5xx, no_answer, timeout, cut_off, or left by the client.",
    (*_UPSTREAM, "end"),
)
FIRST_BYTE = Histogram(
    "appliance_upstream_first_byte_seconds",
    "From a request to the first byte of its answer.",
    _UPSTREAM,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RUNNING = Gauge("appliance_upstream_running", "Requests to an upstream under way.", _UPSTREAM)
HEALTHY = Gauge("appliance_upstream_healthy", "1 when the last health checks were good.", _UPSTREAM)
CIRCUIT = Gauge("appliance_upstream_circuit", "1 for where the breaker stands.", (*_UPSTREAM, "circuit"))
RETRIES = Counter("appliance_upstream_retries", "Requests that were tried again.", ("model",))
CACHE = Counter(
    "appliance_cache_requests", "Calls that the cache could answer, by whether it did.", ("model", "result")
)
CACHE_BYTES = Gauge("appliance_cache_bytes", "Memory that kept answers take.", ("model",))


class Sized(Protocol):
    """What takes memory."""

    @property
    def size(self) -> int:
        """Bytes of it."""


class Shown(Protocol):
    """What is read off an upstream whenever metrics are."""

    inflight: int

    @property
    def is_healthy(self) -> bool:
        """The last checks were good."""

    @property
    def circuit(self) -> Circuit:
        """Where the breaker stands."""


# Who has the labels, the longest first: where a newer config brings a model beside the old one, both do for a while.
_SHOWN: dict[tuple[str, str], list[Shown]] = {}
_KEEPING: dict[str, list[Sized]] = {}


def show(labels: tuple[str, str], shown: Shown) -> None:
    """Have an upstream in the metrics, from now on."""
    alike = _SHOWN.setdefault(labels, [])
    alike.append(shown)
    RUNNING.labels(*labels).set_function(lambda: sum(each.inflight for each in alike))
    HEALTHY.labels(*labels).set_function(lambda: alike[0].is_healthy)
    for circuit in Circuit:
        CIRCUIT.labels(*labels, circuit).set_function(partial(_is_at, alike, circuit))


def _is_at(alike: Sequence[Shown], circuit: Circuit) -> float:
    return float(alike[0].circuit is circuit)


def hide(labels: tuple[str, str], shown: Shown) -> None:
    """Take it out; safe to call twice."""
    alike = _SHOWN.get(labels, [])
    if alike == [shown]:
        del _SHOWN[labels]
        RUNNING.remove(*labels)
        HEALTHY.remove(*labels)
        for circuit in Circuit:
            CIRCUIT.remove(*labels, circuit)
    elif shown in alike:
        alike.remove(shown)


def show_kept(model: str, kept: Sized) -> None:
    """Have the memory of kept answers in the metrics, from now on."""
    alike = _KEEPING.setdefault(model, [])
    alike.append(kept)
    CACHE_BYTES.labels(model).set_function(lambda: sum(each.size for each in alike))


def hide_kept(model: str, kept: Sized) -> None:
    """Take it out; safe to call twice."""
    alike = _KEEPING.get(model, [])
    if alike == [kept]:
        del _KEEPING[model]
        CACHE_BYTES.remove(model)
    elif kept in alike:
        alike.remove(kept)
