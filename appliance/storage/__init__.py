"""Storage: `materialize` turns the URI of a model into a verified local path, `Cache` keeps what was fetched.

Whatever a user, a store or a disk can cause is raised as a `StorageError`.
"""

from __future__ import annotations

from appliance.core.uri import redact
from appliance.storage.cache import Cache
from appliance.storage.manifest import sha256_in_cache, verify
from appliance.storage.materialize import materialize

__all__ = ["Cache", "materialize", "redact", "sha256_in_cache", "verify"]
