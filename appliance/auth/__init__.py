"""Who may ask, for what, and over which connections: keys, callers, certificates."""

from appliance.auth.authorizer import Authorizer
from appliance.auth.principal import Principal, authenticated, current_principal

__all__ = ["OPEN", "Authorizer", "Principal", "authenticated", "current_principal"]

OPEN = "is_open"
"""
A route whose handler has this option set answers without a key; its path must have no parameters.
"""
