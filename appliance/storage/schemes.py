"""
The one table of storage schemes, and the one way into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.errors import StorageError
from appliance.nearest import did_you_mean
from appliance.storage import hf, local, pypi
from appliance.storage.cache import Cache, Report
from appliance.storage.section import StorageSection
from appliance.storage.uri import redact, scheme_of

Bring = Callable[[StorageSection, Cache, Report], Path]
"""
Makes the bytes of a storage section a local directory or single file.
"""

SCHEMES: Mapping[str, Bring] = {
    "file": local.find,
    "hf": hf.fetch,
    "pypi": pypi.fetch,
}


def materialize(storage: StorageSection, cache: Cache, report: Report) -> Path:
    """
    A local directory or single file with the bytes `storage` names, verified; blocks until it is there.

    Raises:
        StorageError: the bytes cannot be brought.
    """
    scheme = scheme_of(storage.uri) or "file"
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES) or f"known are {', '.join(SCHEMES)} and plain paths"
        raise StorageError(f"{redact(storage.uri)}: unknown scheme {scheme!r}; {hint}")
    return SCHEMES[scheme](storage, cache, report)
