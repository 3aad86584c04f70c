"""Errors for models written in Python: what they raise, clients get with its status and text.

`RequestError("no such tenant", status=404)` has any status, and 400 by default. The text of every other exception is
for the log alone, and its status is 500.
"""

from __future__ import annotations

from appliance.core.errors import (
    ApplianceError,
    EngineDeadError,
    ForbiddenError,
    LoadError,
    RateLimitedError,
    RequestError,
    UnavailableError,
    UnsupportedOperationError,
)

__all__ = [
    "ApplianceError",
    "EngineDeadError",
    "ForbiddenError",
    "LoadError",
    "RateLimitedError",
    "RequestError",
    "UnavailableError",
    "UnsupportedOperationError",
]
