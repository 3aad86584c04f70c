"""Circuit breaker and outlier detection: failing upstreams get no requests for a while, then one trial request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from appliance.config.upstreams import CircuitBreakerConfig

# Counts lose half of their weight in this time.
_HALF_LIFE_SECONDS = 30.0

# With fewer requests a failure rate means nothing.
_MIN_REQUESTS = 10.0


class Circuit(StrEnum):
    """Closed lets every request through, open none, half-open one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """The circuit breaker of one upstream; `clock` is in seconds."""

    def __init__(self, config: CircuitBreakerConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._has_trial = False

    @property
    def circuit(self) -> Circuit:
        """The state of the circuit."""
        if self._opened_at is None:
            return Circuit.CLOSED
        return Circuit.OPEN if self.open_seconds > 0 else Circuit.HALF_OPEN

    @property
    def open_seconds(self) -> float:
        """Seconds until a request is allowed again."""
        if self._opened_at is None:
            return 0
        return max(0, self._opened_at + self._config.open_seconds - self._clock())

    @property
    def allows_request(self) -> bool:
        """A request may be sent now."""
        circuit = self.circuit
        return circuit is Circuit.CLOSED or (circuit is Circuit.HALF_OPEN and not self._has_trial)

    def start_request(self) -> None:
        """A request is sent; the first one while half-open is the trial."""
        self._has_trial = self.circuit is Circuit.HALF_OPEN

    def record_success(self) -> None:
        """A request succeeded: close the circuit."""
        self._failures, self._opened_at, self._has_trial = 0, None, False

    def record_failure(self) -> None:
        """A request failed: open the circuit if it was the trial, or one too many in a row."""
        self._failures += 1
        if self._opened_at is not None or self._failures >= self._config.failures:
            self.open()

    def abandon_trial(self) -> None:
        """A request ended without a result, because its client left."""
        self._has_trial = False

    def open(self) -> None:
        """Allow no request for a while."""
        self._failures, self._opened_at, self._has_trial = 0, self._clock(), False


class FailureRate:
    """Requests of about the last minute, and how many of them failed; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._updated_at = clock()
        self._requests = self._failures = 0.0

    def add(self, *, is_success: bool) -> None:
        """Count one request."""
        failures, requests = self.counts()
        self._failures, self._requests = failures + (not is_success), requests + 1

    def clear(self) -> None:
        """Forget all requests."""
        self._requests = self._failures = 0.0

    def counts(self) -> tuple[float, float]:
        """Return the number of failures and of all requests."""
        now = self._clock()
        kept = 0.5 ** ((now - self._updated_at) / _HALF_LIFE_SECONDS)
        self._updated_at, self._requests, self._failures = now, self._requests * kept, self._failures * kept
        return self._failures, self._requests


def find_outlier(rates: Sequence[FailureRate], margin: float) -> int | None:
    """Return the index of the highest rate if it exceeds the rate of the others together by more than `margin`."""
    counts = [rate.counts() for rate in rates]
    all_failures, all_requests = sum(failures for failures, _ in counts), sum(requests for _, requests in counts)
    outlier, max_difference = None, margin
    for index, (failures, requests) in enumerate(counts):
        other_requests = all_requests - requests
        if requests < _MIN_REQUESTS or other_requests < _MIN_REQUESTS:
            continue
        difference = failures / requests - (all_failures - failures) / other_requests
        if difference > max_difference:
            outlier, max_difference = index, difference
    return outlier
