"""Rate limits of API keys, as token buckets that refill within a minute, and the error of a refused request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil

from appliance.config.limits import KeyLimitsConfig
from appliance.core.errors import RateLimitedError
from appliance.core.request_context import current_context

_MINUTE = 60.0


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
    """What was spent and is not refilled yet; the whole limit is refilled evenly within a minute."""

    spent: float = 0.0
    at: float = 0.0

    def left(self, limit: int, now: float) -> float:
        self.spent = max(0.0, self.spent - (now - self.at) * limit / _MINUTE)
        self.at = now
        return limit - self.spent

    def wait_seconds(self, needed: float, limit: int, now: float) -> float:
        """Return the seconds until the needed amount is left, at most the limit; 0 is now."""
        return max(0.0, (min(needed, limit) - self.left(limit, now)) * _MINUTE / limit)


@dataclass(slots=True)
class _KeyBuckets:
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the limits of a key, and what a request needs of it."""

    name: str
    reason: str
    bucket: _Bucket
    limit: int
    needed: int


class RateLimiter:
    """The limits of all keys by name, and what each has spent; `refused` counts refusals by their reason."""

    def __init__(self, limits: Mapping[str, KeyLimitsConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self.refused: Counter[str] = Counter()
        self._limits = limits
        self._clock = clock
        self._buckets: dict[str, _KeyBuckets] = {}

    def apply(self, limits: Mapping[str, KeyLimitsConfig]) -> None:
        """Use other limits from now on; what is spent stays spent."""
        self._limits = limits
        self._buckets = {name: buckets for name, buckets in self._buckets.items() if name in limits}

    def charge(self, name: str | None, tokens: int) -> RateLimitCharge | None:
        """Charge a key for one request with an estimate of its prompt tokens; None if the key has no limits.

        Raises:
            RateLimitedError: the key has spent too much.
        """
        limits = None if name is None else self._limits.get(name)
        if name is None or limits is None or limits == KeyLimitsConfig():
            return None
        charge = RateLimitCharge(limits, self._buckets.setdefault(name, _KeyBuckets()), tokens, self._clock)
        for part in charge.parts():
            seconds = part.bucket.wait_seconds(part.needed, part.limit, self._clock())
            if seconds > 0:
                self.refused[part.reason] += 1
                message = f"The key {name!r} has used up its {part.limit} {part.name} a minute for now; try again later"
                raise refusal(part.reason, message, seconds, code="rate_limit_exceeded", headers=charge.headers())
        charge.take()
        return charge


@dataclass(slots=True)
class RateLimitCharge:
    """The charge for one request: one request, and its tokens, which are estimated until they are counted."""

    limits: KeyLimitsConfig
    buckets: _KeyBuckets
    tokens: int
    clock: Callable[[], float]

    def take(self) -> None:
        """Take the charge from the key's buckets."""
        self.buckets.requests.spent += 1
        self.buckets.tokens.spent += self.tokens

    def refund(self) -> None:
        """Return the charge, because the request was not handled."""
        self.buckets.requests.spent -= 1
        self.settle(0)

    def settle(self, tokens: int) -> None:
        """Replace the estimate by the tokens that were counted."""
        self.buckets.tokens.spent += tokens - self.tokens
        self.tokens = tokens

    def headers(self) -> Mapping[str, str]:
        """Return what is left as OpenAI's headers (https://platform.openai.com/docs/guides/rate-limits)."""
        headers = {}
        for part in self.parts():
            reset_seconds = part.bucket.wait_seconds(part.limit, part.limit, self.clock())
            headers[f"x-ratelimit-limit-{part.name}"] = str(part.limit)
            headers[f"x-ratelimit-remaining-{part.name}"] = str(max(0, int(part.bucket.left(part.limit, self.clock()))))
            headers[f"x-ratelimit-reset-{part.name}"] = f"{reset_seconds:.3f}s"
        return headers

    def parts(self) -> list[_Part]:
        """Return the limits that the key has."""
        parts = []
        if (limit := self.limits.requests_per_minute) is not None:
            parts.append(_Part("requests", "key_requests", self.buckets.requests, limit, 1))
        if (limit := self.limits.tokens_per_minute) is not None:
            parts.append(_Part("tokens", "key_tokens", self.buckets.tokens, limit, self.tokens))
        return parts
