"""Time to download and load a model, and the Kubernetes probes that allow for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DEFAULT_GBIT = 1.0

# Read rate of a local SSD, and the fixed cost of a start: imports, compilation, graph capture.
_LOAD_BYTES_PER_SECOND = 2 * 10**9
_START_SECONDS_CPU = 15.0
_START_SECONDS_GPU = 75.0

# Probes allow three times the estimate, because networks and disks are shared.
_PROBE_FACTOR = 3
_PERIOD_SECONDS = 10


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Estimated seconds; `gbit` is the assumed speed of the network in Gbit/s."""

    download_seconds: float
    load_seconds: float
    gbit: float


def load_time(download_bytes: int, load_bytes: int, gbit: float, *, on_cpu: bool) -> LoadTime:
    """Estimate the times; `load_bytes` are the weights of all ranks of one machine."""
    start_seconds = _START_SECONDS_CPU if on_cpu else _START_SECONDS_GPU
    return LoadTime(
        download_seconds=round(download_bytes * 8 / (gbit * 10**9), 1),
        load_seconds=round(load_bytes / _LOAD_BYTES_PER_SECOND + start_seconds, 1),
        gbit=gbit,
    )


def probes(times: Iterable[LoadTime], port: int) -> dict[str, Any]:  # Any: YAML values
    """Return the probes of a container whose models load one after the other."""
    seconds = sum(each.download_seconds + each.load_seconds for each in times)
    failures = max(6, math.ceil(seconds * _PROBE_FACTOR / _PERIOD_SECONDS))
    return {
        "startupProbe": _probe("/startupz", port, failures),
        "livenessProbe": _probe("/livez", port, 3),
        "readinessProbe": _probe("/readyz", port, 1),
    }


def _probe(path: str, port: int, failures: int) -> dict[str, Any]:  # Any: YAML values
    get = {"path": path, "port": port}
    return {"httpGet": get, "periodSeconds": _PERIOD_SECONDS, "timeoutSeconds": 5, "failureThreshold": failures}
