"""What a key may ask in a minute, with a clock that the test moves."""

from __future__ import annotations

import pytest

from appliance.config.limits import KeyLimitsConfig
from appliance.core.errors import RateLimitedError
from appliance.core.request_context import use_context
from appliance.limits.rate_limiter import RateLimitCharge, RateLimiter


class Account:
    """The key `a` and its limits, at a moment."""

    def __init__(self, **limits: int) -> None:
        self.now = 0.0
        self.keys = RateLimiter({"a": KeyLimitsConfig(**limits)}, lambda: self.now)

    def charge(self, tokens: int = 0) -> RateLimitCharge:
        """One request with so many tokens in its prompt."""
        charge = self.keys.charge("a", tokens)
        assert charge is not None
        return charge

    def refused(self, tokens: int = 0) -> RateLimitedError:
        """The error of a request that is one too many."""
        with pytest.raises(RateLimitedError) as caught:
            self.charge(tokens)
        return caught.value


def test_requests_beyond_the_limit_wait_until_one_has_come_back() -> None:
    """Six a minute are one in ten seconds, and a rested key has all six at once."""
    account = Account(requests_per_minute=6)
    for _ in range(6):
        account.charge()
    with use_context("r") as record:
        error = account.refused()
    account.now = 10.0
    account.charge()

    assert (error.status, error.code, error.retry_after) == (429, "rate_limit_exceeded", 10)
    assert record.refused == "key_requests"
    assert account.keys.refused == {"key_requests": 1}
    assert "'a' has used up its 6 requests a minute" in str(error)


def test_tokens_are_estimated_and_then_counted() -> None:
    """An answer that was longer than the limit is paid off before the next request."""
    account = Account(tokens_per_minute=600)
    account.charge(100).settle(900)
    error = account.refused(100)
    account.now = 40.0
    account.charge(100)

    assert error.retry_after == 40


def test_a_prompt_longer_than_the_limit_waits_for_the_whole_minute_and_goes() -> None:
    """It would never go otherwise."""
    account = Account(tokens_per_minute=60)
    account.charge(30)
    error = account.refused(1000)
    account.now = 30.0
    account.charge(1000)

    assert error.retry_after == 30


def test_a_request_that_was_not_answered_costs_nothing() -> None:
    """The model had no room for it, which is not the key's fault."""
    account = Account(requests_per_minute=1, tokens_per_minute=100)
    account.charge(100).refund()

    account.charge(100)


def test_what_is_left_is_said_as_openai_says_it() -> None:
    """Limit, remainder, and the time until all is back."""
    charge = Account(requests_per_minute=10, tokens_per_minute=600).charge(150)

    assert charge.headers() == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6.000s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "450",
        "x-ratelimit-reset-tokens": "15.000s",
    }


def test_a_refusal_says_what_is_left_too() -> None:
    """Clients read the headers of an error as well."""
    account = Account(requests_per_minute=1)
    account.charge()

    assert account.refused().headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("name", [None, "unknown"])
def test_who_has_no_limits_is_not_charged(name: str | None) -> None:
    """No key, or one without limits."""
    assert Account(requests_per_minute=1).keys.charge(name, 1) is None
    assert RateLimiter({"a": KeyLimitsConfig()}).charge("a", 1) is None


def test_other_limits_hold_from_now_on_and_what_is_spent_stays_spent() -> None:
    """A change of the config gives nobody a fresh minute."""
    account = Account(requests_per_minute=4)
    for _ in range(4):
        account.charge()
    account.keys.apply({"a": KeyLimitsConfig(requests_per_minute=6)})
    for _ in range(2):
        account.charge()

    assert account.refused().retry_after == 10


def test_workers_share_a_limit() -> None:
    """Rounded up, because a share of nothing would refuse all."""
    limits = KeyLimitsConfig(requests_per_minute=10, tokens_per_minute=None).share(4)

    assert (limits.requests_per_minute, limits.tokens_per_minute) == (3, None)


def test_the_lines_of_a_batch_cost_tokens_but_no_requests() -> None:
    """A batch does not use up the requests of its key, nor wait for them; its tokens count."""
    account = Account(requests_per_minute=1, tokens_per_minute=600)
    for _ in range(2):
        assert account.keys.charge("a", 300, requests=0) is not None

    account.keys.charge("a", 0)
    with pytest.raises(RateLimitedError, match="600 tokens"):
        account.keys.charge("a", 300, requests=0)
