"""Limits of models and API keys: queue, capacity, rate limits, timeouts, estimates."""

from appliance.limits.queue import (
    QueueSettings,
    RequestQueue,
    SequenceSlots,
    current_slots,
    require_size,
    require_within,
    run_sequence,
    use_slots,
)
from appliance.limits.rate_limiter import RateLimitCharge, RateLimiter
from appliance.limits.timeouts import Timeouts

__all__ = [
    "QueueSettings",
    "RateLimitCharge",
    "RateLimiter",
    "RequestQueue",
    "SequenceSlots",
    "Timeouts",
    "current_slots",
    "require_size",
    "require_within",
    "run_sequence",
    "use_slots",
]
