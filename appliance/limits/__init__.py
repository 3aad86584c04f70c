"""Who is let in, and when: limits of each model and of each key, a queue before the engine, a forecast of the wait."""

from appliance.limits.queue import QueueSettings, RequestQueue
from appliance.limits.rate_limiter import RateLimitCharge, RateLimiter
from appliance.limits.slots import SequenceSlots, current_slot, held, require_size, require_within, sequence
from appliance.limits.timeouts import Timeouts

__all__ = [
    "QueueSettings",
    "RateLimitCharge",
    "RateLimiter",
    "RequestQueue",
    "SequenceSlots",
    "Timeouts",
    "current_slot",
    "held",
    "require_size",
    "require_within",
    "sequence",
]
