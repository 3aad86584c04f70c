"""A circuit breaker: after enough failures nothing is asked for a while, and then one request finds out."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from appliance.config.upstreams import CircuitBreakerConfig


class Circuit(StrEnum):
    """Closed lets everything through, open nothing, half-open one request."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """The breaker of one upstream; `clock` is in seconds."""

    def __init__(self, config: CircuitBreakerConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._failures = 0
        self._opened: float | None = None
        self._is_trying = False

    @property
    def circuit(self) -> Circuit:
        """Where it stands."""
        if self._opened is None:
            return Circuit.CLOSED
        return Circuit.OPEN if self.wait > 0 else Circuit.HALF_OPEN

    @property
    def wait(self) -> float:
        """Seconds until something is let through again."""
        return 0 if self._opened is None else max(0, self._opened + self._config.open_seconds - self._clock())

    @property
    def lets_through(self) -> bool:
        """Whether a request may be made now."""
        match self.circuit:
            case Circuit.HALF_OPEN:
                return not self._is_trying
            case circuit:
                return circuit is Circuit.CLOSED

    def begin(self) -> None:
        """A request is made; the first one through a half-open breaker is its trial."""
        self._is_trying = self.circuit is Circuit.HALF_OPEN

    def succeed(self) -> None:
        """A request was answered."""
        self._failures, self._opened, self._is_trying = 0, None, False

    def fail(self) -> None:
        """A request failed."""
        self._failures += 1
        if self._opened is not None or self._failures >= self._config.failures:
            self.open()

    def forget(self) -> None:
        """A request ended without telling anything, because its client left."""
        self._is_trying = False

    def open(self) -> None:
        """Let nothing through for a while."""
        self._failures, self._opened, self._is_trying = 0, self._clock(), False
