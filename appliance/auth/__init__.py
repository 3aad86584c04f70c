"""Authentication and authorization: API keys, principals, allowed hosts, certificates."""

from appliance.auth.authorizer import Authorizer, Principal, authenticated, current_principal

__all__ = ["PUBLIC", "Authorizer", "Principal", "authenticated", "current_principal"]

PUBLIC = "is_public"
"""Key of a handler's `opt`: it answers without an API key; its paths must have no parameters."""
