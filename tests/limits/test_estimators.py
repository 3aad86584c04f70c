"""How long a request would wait, from what was measured."""

from __future__ import annotations

import pytest

from appliance.limits.estimators import TokenEstimator, WaitEstimator


def forecast(*held: float) -> WaitEstimator:
    """One that has seen requests hold their places for so long."""
    made = WaitEstimator()
    for seconds in held:
        made.learn_duration(seconds)
    return made


def test_nothing_is_known_before_a_request_has_ended() -> None:
    """A cold model forecasts no wait at all, not one of zero."""
    assert WaitEstimator().wait_seconds(0, 4, [0.0] * 4, 1.0) is None


def test_the_wait_is_what_is_ahead_over_the_rate_of_the_drain() -> None:
    """Four places that are held for two seconds each drain two requests a second."""
    # Begun half a second apart, so they end half a second apart.
    began = [8.5, 9.0, 9.5, 10.0]

    waits = [forecast(2.0).wait_seconds(ahead, 4, began, 10.0) for ahead in range(6)]

    assert waits == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])


def test_requests_that_began_together_are_expected_to_end_together() -> None:
    """The rate alone would promise the next one a place in half a second, and none comes for two."""
    assert forecast(2.0).wait_seconds(0, 4, [10.0] * 4, 10.0) == pytest.approx(2.0)


def test_a_place_that_is_held_for_longer_than_ever_slows_the_forecast() -> None:
    """An engine that stands still ends no request, and so would look as fast as before."""
    wait = forecast(2.0).wait_seconds(0, 4, [0.0] * 4, 100.0)

    assert wait == pytest.approx(25.0)


def test_a_first_token_is_expected_as_late_as_it_was_for_as_many_at_once() -> None:
    """What one request alone found says less than what many found, and nothing at all is no delay."""
    made = WaitEstimator()
    made.learn_first_token(1, 0.1, 0.0)
    made.learn_first_token(8, 2.0, 0.0)

    assert [made.first_token_seconds(running, 1.0) for running in (1, 2, 8, 15, 40)] == [0.1, 0.1, 2.0, 2.0, 2.0]
    assert WaitEstimator().first_token_seconds(8, 1.0) == 0


def test_a_slow_first_token_is_forgotten_in_a_minute() -> None:
    """Where everybody is refused for it, nobody could show that it is over."""
    made = WaitEstimator()
    made.learn_first_token(1, 30.0, 0.0)

    assert made.first_token_seconds(1, 59.0) == 30
    assert made.first_token_seconds(1, 61.0) == 0


def test_one_late_first_token_among_many_is_not_expected_again() -> None:
    """A first request may have compiled something."""
    made = WaitEstimator()
    for taken in (30.0, *[0.2] * 10):
        made.learn_first_token(1, taken, 0.0)

    assert made.first_token_seconds(1, 1.0) == 0.2


def test_tokens_are_estimated_from_bytes_as_they_were_counted() -> None:
    """Four bytes a token at first, then what requests really had."""
    ratio = TokenEstimator()
    first = ratio.tokens(1000)
    for _ in range(100):
        ratio.learn(10_000, 1000)

    assert first == 250
    assert 100 <= ratio.tokens(1000) <= 102


def test_an_estimate_follows_what_is_asked_now() -> None:
    """Requests of an hour ago do not outweigh those of this minute."""
    ratio = TokenEstimator()
    for _ in range(1000):
        ratio.learn(10_000, 1000)
    for _ in range(100):
        ratio.learn(10_000, 5000)

    assert ratio.tokens(1000) >= 490
