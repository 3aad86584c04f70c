"""The Open Inference Protocol over gRPC: the same models, limits and readiness as over REST.

Its modules are imported only where a port is asked for: a base install has no gRPC.
"""

from __future__ import annotations

from importlib.util import find_spec

from appliance.core.errors import MissingExtraError

_PACKAGES = {"grpc": "grpcio", "grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection"}


def require() -> None:
    """Return where gRPC can be served.

    Raises:
        MissingExtraError: a package it needs is not installed.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "grpc", "server.grpc_port")
