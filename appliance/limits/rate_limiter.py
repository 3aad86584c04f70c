"""Rate limits of API keys, as token buckets that refill within a minute, and the error of a refused request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from appliance.config.limits import KeyLimitsConfig
from appliance.core.errors import RateLimitedError
from appliance.core.request_context import current_context

_MINUTE = 60.0

KEY_LIMIT = "rate_limit_exceeded"
"""The code of a request that is over a limit of its key."""


def refusal(
    reason: str, message: str, seconds: float | None, *, code: str, headers: Mapping[str, str] | None = None
) -> RateLimitedError:
    """Return the error for a request that is refused for this reason, a single word; None is an unknown wait."""
    note_refusal(reason)
    return RateLimitedError(message, retry_after=max(1, ceil(seconds or 0)), code=code, headers=headers)


def note_refusal(reason: str) -> None:
    """Note the reason in the context of the current request."""
    context = current_context()
    if context is not None and context.refused is None:
        context.refused = reason


@dataclass(slots=True)
class _Bucket:
    """What was spent of one limit and is not refilled yet; the whole limit is refilled evenly within a minute."""

    name: str
    limit: int | None = None
    spent: float = 0.0
    at: float = 0.0

    def left(self, limit: int, now: float) -> float:
        self.spent = max(0.0, self.spent - (now - self.at) * limit / _MINUTE)
        self.at = now
        return limit - self.spent

    def wait_seconds(self, needed: float, limit: int, now: float) -> float:
        """Return the seconds until the needed amount is left, at most the limit; 0 is now."""
        return max(0.0, (min(needed, limit) - self.left(limit, now)) * _MINUTE / limit)


class RateLimiter:
    """The limits of all keys by name, and what each has spent; `refused` counts refusals by their reason."""

    def __init__(self, limits: Mapping[str, KeyLimitsConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self.refused: Counter[str] = Counter()
        self._limits = limits
        self._clock = clock
        self._buckets: dict[str, tuple[_Bucket, _Bucket]] = {}

    def apply(self, limits: Mapping[str, KeyLimitsConfig]) -> None:
        """Use other limits from now on; what is spent stays spent."""
        self._limits = limits
        self._buckets = {name: buckets for name, buckets in self._buckets.items() if name in limits}

    def charge(self, name: str | None, tokens: int, requests: int = 1) -> RateLimitCharge | None:
        """Charge a key for requests with an estimate of their prompt tokens; None if the key has no limits.

        Raises:
            RateLimitedError: the key has spent too much.
        """
        limits = None if name is None else self._limits.get(name)
        if name is None or limits is None or limits == KeyLimitsConfig():
            return None
        buckets = self._buckets.setdefault(name, (_Bucket("requests"), _Bucket("tokens")))
        buckets[0].limit, buckets[1].limit = limits.requests_per_minute, limits.tokens_per_minute
        charge = RateLimitCharge(*buckets, requests, tokens, self._clock)
        for bucket, needed in zip(buckets, (requests, tokens), strict=True):
            if bucket.limit is None or (bucket is buckets[0] and not requests):
                continue
            seconds = bucket.wait_seconds(needed, bucket.limit, self._clock())
            if seconds > 0:
                reason = f"key_{bucket.name}"
                self.refused[reason] += 1
                used_up = f"its {bucket.limit} {bucket.name} a minute"
                message = f"The key {name!r} has used up {used_up} for now; try again later"
                raise refusal(reason, message, seconds, code=KEY_LIMIT, headers=charge.headers())
        charge.take()
        return charge


@dataclass(slots=True)
class RateLimitCharge:
    """The charge for one request, or a line of a batch: its tokens are estimated until they are counted."""

    request_bucket: _Bucket
    token_bucket: _Bucket
    requests: int
    tokens: int
    clock: Callable[[], float]

    def take(self) -> None:
        """Take the charge from the key's buckets."""
        self.request_bucket.spent += self.requests
        self.token_bucket.spent += self.tokens

    def refund(self) -> None:
        """Return the charge, because the request was not handled; safe to call twice."""
        self.request_bucket.spent -= self.requests
        self.requests = 0
        self.settle(0)

    def settle(self, tokens: int) -> None:
        """Replace the estimate by the tokens that were counted."""
        self.token_bucket.spent += tokens - self.tokens
        self.tokens = tokens

    def headers(self) -> Mapping[str, str]:
        """Return what is left as OpenAI's headers (https://platform.openai.com/docs/guides/rate-limits)."""
        headers, now = {}, self.clock()
        for bucket in (self.request_bucket, self.token_bucket):
            if (limit := bucket.limit) is not None:
                headers[f"x-ratelimit-limit-{bucket.name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{bucket.name}"] = str(max(0, int(bucket.left(limit, now))))
                headers[f"x-ratelimit-reset-{bucket.name}"] = f"{bucket.wait_seconds(limit, limit, now):.3f}s"
        return headers
