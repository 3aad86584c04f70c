"""Where the bytes of models come from: `materialize` makes them a verified local path, `Cache` keeps what was made."""

from __future__ import annotations

from appliance.core.uri import redact
from appliance.storage.cache import Cache, Report
from appliance.storage.filesystems.registry import SCHEMES
from appliance.storage.manifest import digest, verify
from appliance.storage.materialize import materialize

__all__ = ["SCHEMES", "Cache", "Report", "digest", "materialize", "redact", "verify"]
