"""A request that is not let in: noted in its record, and told when to come again."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from appliance.core.errors import RateLimitedError
from appliance.core.request_context import current_context


def refusal(
    reason: str, message: str, seconds: float | None, *, code: str, headers: Mapping[str, str] | None = None
) -> RateLimitedError:
    """
    The error for a request that is refused for this reason, a single word; None is that nobody knows for how long.
    """
    note(reason)
    return RateLimitedError(message, retry_after=max(1, ceil(seconds or 0)), code=code, headers=headers)


def note(reason: str) -> None:
    """Write into the record of the current request that it was not let in, and why."""
    record = current_context()
    if record is not None and record.refused is None:
        record.refused = reason
