"""Who is let in, and when: limits of each model and of each key, a queue before the engine, a forecast of the wait."""

from appliance.config.limits import KeyLimitsConfig, LimitsConfig, SloConfig, share
from appliance.limits.queue import QueueSettings, RequestQueue
from appliance.limits.rate_limiter import RateLimitCharge, RateLimiter
from appliance.limits.slots import SequenceSlots, current_slot, held, require_size, require_within, sequence
from appliance.limits.timeouts import Timeouts

__all__ = [
    "KeyLimitsConfig",
    "LimitsConfig",
    "QueueSettings",
    "RateLimitCharge",
    "RateLimiter",
    "RequestQueue",
    "SequenceSlots",
    "SloConfig",
    "Timeouts",
    "current_slot",
    "held",
    "require_size",
    "require_within",
    "sequence",
    "share",
]
