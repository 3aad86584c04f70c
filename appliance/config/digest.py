"""A config in twelve characters."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from appliance.config.root import Config


def digest(config: Config) -> str:
    """The same for the same config, wherever its values came from; secrets are no part of it."""
    # A model that a Python program brings along is told by its class.
    plain = config.model_dump(mode="json", by_alias=True, warnings=False, fallback=lambda each: type(each).__qualname__)
    return sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:12]
