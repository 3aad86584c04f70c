"""A new API key, for whoever configures one."""

from __future__ import annotations

import secrets

from appliance.config.security import digest_of

# 256 bits: as hard to find as its SHA-256 is to turn round.
_BYTES = 32


def new() -> tuple[str, str]:
    """A random key, and its SHA-256 in hexadecimal."""
    key = f"sk-{secrets.token_urlsafe(_BYTES)}"
    return key, digest_of(key.encode())
