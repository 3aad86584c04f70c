"""
Who is let in, and when: limits of each model and of each key, a queue before the engine, a forecast of the wait.
"""

from appliance.config.limits import KeyLimits, LimitsSection, SloSection, share
from appliance.limits.queue import Gate, Settings
from appliance.limits.rate_limiter import Charge, Keys
from appliance.limits.slots import Slot, current_slot, held, require_size, require_within, sequence
from appliance.limits.timeouts import Deadlines

__all__ = [
    "Charge",
    "Deadlines",
    "Gate",
    "KeyLimits",
    "Keys",
    "LimitsSection",
    "Settings",
    "SloSection",
    "Slot",
    "current_slot",
    "held",
    "require_size",
    "require_within",
    "sequence",
    "share",
]
