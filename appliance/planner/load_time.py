"""How long a model takes to be brought and loaded, and what that means for the probes of Kubernetes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# A network of one gigabit a second, unless a plan is told another.
USUAL_GBIT = 1.0

# What a local SSD is read at, and a start costs beside: imports, compilation, captured graphs.
_LOAD_BYTES_PER_SECOND = 2 * 10**9
_START_SECONDS = {True: 15.0, False: 75.0}

# Probes wait this much longer than is expected, for a network and disks that others share.
_PATIENCE = 3
_PERIOD_SECONDS = 10


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Seconds until the bytes are here and until the model answers; estimates by `gbit` of the network, in Gbit/s."""

    download_seconds: float
    load_seconds: float
    gbit: float


def timing_of(download_bytes: int, load_bytes: int, gbit: float, *, on_cpu: bool) -> LoadTime:
    """Times of so many bytes; `load_bytes` are those of all ranks of a machine."""
    return LoadTime(
        download_seconds=round(download_bytes * 8 / (gbit * 10**9), 1),
        load_seconds=round(load_bytes / _LOAD_BYTES_PER_SECOND + _START_SECONDS[on_cpu], 1),
        gbit=gbit,
    )


def probes(timings: Iterable[LoadTime], port: int) -> dict[str, Any]:  # Any: YAML values
    """The probes of a container that serves these models, which load one after the other."""
    seconds = sum(each.download_seconds + each.load_seconds for each in timings)
    failures = max(6, math.ceil(seconds * _PATIENCE / _PERIOD_SECONDS))
    return {
        "startupProbe": _probe("/startupz", port, failures),
        "livenessProbe": _probe("/livez", port, 3),
        "readinessProbe": _probe("/readyz", port, 1),
    }


def _probe(path: str, port: int, failures: int) -> dict[str, Any]:  # Any: YAML values
    get = {"path": path, "port": port}
    return {"httpGet": get, "periodSeconds": _PERIOD_SECONDS, "timeoutSeconds": 5, "failureThreshold": failures}
