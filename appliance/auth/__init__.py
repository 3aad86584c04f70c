"""
Who may ask, for what, and over which connections: keys, callers, certificates.
"""

from appliance.auth.authorizer import Access, AccessSettings
from appliance.auth.principal import Caller, calling, current_caller

__all__ = ["OPEN", "Access", "AccessSettings", "Caller", "calling", "current_caller"]

OPEN = "is_open"
"""
A route whose handler has this option set answers without a key; its path must have no parameters.
"""
