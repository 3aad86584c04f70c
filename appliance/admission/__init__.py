"""
Who is let in, and when: limits of each model and of each key, a queue before the engine, a forecast of the wait.
"""

from appliance.admission.deadlines import Deadlines
from appliance.admission.gate import Gate, Settings
from appliance.admission.keys import Charge, Keys
from appliance.admission.slots import Slot, current_slot, held, require_size, require_within, sequence
from appliance.config.limits import KeyLimits, LimitsSection, SloSection, share

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
