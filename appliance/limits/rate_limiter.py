"""What each API key may still ask in this minute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from appliance.config.limits import KeyLimitsConfig
from appliance.limits.rejection import refusal

_MINUTE = 60.0


@dataclass(slots=True)
class _Bucket:
    """What was spent and has not come back yet: it does so evenly, the whole limit in a minute."""

    spent: float = 0.0
    at: float = 0.0

    def left(self, limit: int, now: float) -> float:
        self.spent = max(0.0, self.spent - (now - self.at) * limit / _MINUTE)
        self.at = now
        return limit - self.spent

    def wait(self, need: float, limit: int, now: float) -> float:
        """Seconds until as much as is needed is left, or all there can be where that is less; 0 is now."""
        return max(0.0, (min(need, limit) - self.left(limit, now)) * _MINUTE / limit)


@dataclass(slots=True)
class _KeyBuckets:
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)


class RateLimiter:
    """The limits of all keys by their names, and what each has spent; `refused` counts by the reason."""

    def __init__(self, limits: Mapping[str, KeyLimitsConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self.refused: Counter[str] = Counter()
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _KeyBuckets] = {}

    def apply(self, limits: Mapping[str, KeyLimitsConfig]) -> None:
        """Hold to other limits from now on; what is spent stays spent."""
        self._limits = limits
        self._accounts = {name: account for name, account in self._accounts.items() if name in limits}

    def charge(self, name: str | None, tokens: int) -> RateLimitCharge | None:
        """One request with about so many prompt tokens, on the account of this key; None where nothing limits it.

        Raises:
            LimitedError: the key has spent too much.
        """
        limits = None if name is None else self._limits.get(name)
        if name is None or limits is None or limits == KeyLimitsConfig():
            return None
        charge = RateLimitCharge(limits, self._accounts.setdefault(name, _KeyBuckets()), tokens, self._clock)
        for reason, what, seconds in charge.shortages():
            self.refused[reason] += 1
            raise refusal(
                reason,
                f"The key {name!r} has used up its {what} for now; try again later",
                seconds,
                code="rate_limit_exceeded",
                headers=charge.headers(),
            )
        charge.take()
        return charge


@dataclass(slots=True)
class RateLimitCharge:
    """What one request costs its key: one request, and the tokens it is estimated to have until they are counted."""

    limits: KeyLimitsConfig
    account: _KeyBuckets
    tokens: int
    clock: Callable[[], float]

    def shortages(self) -> list[tuple[str, str, float]]:
        """What the key lacks: the reason in a word, the limit, and the seconds until it has enough."""
        return [
            (reason, f"{limit} {what} a minute", seconds)
            for what, reason, bucket, limit, need in self._parts()
            if (seconds := bucket.wait(need, limit, self.clock())) > 0
        ]

    def take(self) -> None:
        """Put it on the account."""
        self.account.requests.spent += 1
        self.account.tokens.spent += self.tokens

    def refund(self) -> None:
        """Take it off again: nothing was done for it."""
        self.account.requests.spent -= 1
        self.settle(0)

    def settle(self, tokens: int | None) -> None:
        """Put the tokens that were counted in the place of the estimate, which stays where nobody counted; once."""
        if tokens is not None:
            self.account.tokens.spent += tokens - self.tokens
            self.tokens = tokens

    def headers(self) -> Mapping[str, str]:
        """What is left, as OpenAI says it (https://platform.openai.com/docs/guides/rate-limits)."""
        said = {}
        for what, _, bucket, limit, _ in self._parts():
            said[f"x-ratelimit-limit-{what}"] = str(limit)
            said[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.left(limit, self.clock()))))
            said[f"x-ratelimit-reset-{what}"] = f"{bucket.wait(limit, limit, self.clock()):.3f}s"
        return said

    def _parts(self) -> list[tuple[str, str, _Bucket, int, int]]:
        limits, account = self.limits, self.account
        parts = [
            ("requests", "key_requests", account.requests, limits.requests_per_minute, 1),
            ("tokens", "key_tokens", account.tokens, limits.tokens_per_minute, self.tokens),
        ]
        return [(what, reason, bucket, limit, need) for what, reason, bucket, limit, need in parts if limit is not None]
