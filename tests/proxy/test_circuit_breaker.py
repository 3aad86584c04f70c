"""The circuit breaker, outlier detection, and the budget of retries."""

from __future__ import annotations

import pytest

from appliance.config.upstreams import CircuitBreakerConfig
from appliance.proxy.circuit_breaker import Circuit, CircuitBreaker, FailureRate, find_outlier
from appliance.proxy.pool import RetryBudget


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    """Opens for ten seconds after three failures in a row."""
    return CircuitBreaker(CircuitBreakerConfig(failures=3, open_seconds=10), clock)


def _fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        breaker.start_request()
        breaker.record_failure()


def test_consecutive_failures_open_the_circuit(breaker: CircuitBreaker) -> None:
    """A success in between resets the count."""
    _fail(breaker, 2)
    breaker.record_success()
    _fail(breaker, 2)
    assert breaker.allows_request

    _fail(breaker, 1)

    assert (breaker.circuit, breaker.allows_request, breaker.open_seconds) == (Circuit.OPEN, False, 10)


def test_a_half_open_circuit_allows_one_request(breaker: CircuitBreaker, clock: Clock) -> None:
    """No other one while that one is running."""
    _fail(breaker, 3)
    clock.now += 10

    assert (breaker.circuit, breaker.allows_request) == (Circuit.HALF_OPEN, True)
    breaker.start_request()
    assert not breaker.allows_request


def test_a_successful_trial_closes_the_circuit(breaker: CircuitBreaker, clock: Clock) -> None:
    """The failures before it are forgotten."""
    _fail(breaker, 3)
    clock.now += 10
    breaker.start_request()

    breaker.record_success()

    assert (breaker.circuit, breaker.allows_request) == (Circuit.CLOSED, True)


def test_a_failed_trial_opens_the_circuit_again(breaker: CircuitBreaker, clock: Clock) -> None:
    """For the whole time."""
    _fail(breaker, 3)
    clock.now += 12
    _fail(breaker, 1)

    assert (breaker.circuit, breaker.open_seconds) == (Circuit.OPEN, 10)


def test_a_trial_whose_client_left_allows_another_one(breaker: CircuitBreaker, clock: Clock) -> None:
    """It had no result."""
    _fail(breaker, 3)
    clock.now += 10
    breaker.start_request()

    breaker.abandon_trial()

    assert breaker.allows_request


def test_retries_are_a_share_of_the_traffic() -> None:
    """A few at first, then one of five requests; quiet times save up only a limited number."""
    budget = RetryBudget(0.2)
    assert [budget.take_retry() for _ in range(5)] == [True, True, True, False, False]

    for _ in range(11):
        budget.add_request()
    assert [budget.take_retry() for _ in range(3)] == [True, True, False]
    for _ in range(10_000):
        budget.add_request()
    assert sum(budget.take_retry() for _ in range(1000)) == 100


def _rate(clock: Clock, good: int, bad: int) -> FailureRate:
    rate = FailureRate(clock)
    for number in range(good + bad):
        rate.add(is_success=number < good)
    return rate


def test_the_upstream_that_fails_much_more_often_is_the_outlier(clock: Clock) -> None:
    """There is none if all fail alike, or after a few requests."""
    bad, good, fine = _rate(clock, 10, 10), _rate(clock, 20, 0), _rate(clock, 19, 1)

    assert find_outlier([good, bad, fine], 0.3) == 1
    assert find_outlier([good, bad, fine], 0.6) is None
    assert find_outlier([_rate(clock, 10, 10), _rate(clock, 10, 10)], 0.3) is None
    assert find_outlier([_rate(clock, 0, 5), good], 0.3) is None
    assert find_outlier([bad], 0.3) is None
    assert find_outlier([], 0.3) is None


def test_old_requests_do_not_count(clock: Clock) -> None:
    """They fade within a minute or two."""
    bad, good = _rate(clock, 0, 40), _rate(clock, 40, 0)
    clock.now += 90

    assert find_outlier([bad, good], 0.3) is None
