"""The Open Inference Protocol over gRPC, with the same models, limits and readiness as over REST.

The other modules are imported only if `server.grpc_port` is set, because a base install has no gRPC.
"""

from __future__ import annotations

from importlib.util import find_spec

from appliance.core.errors import MissingExtraError

_PACKAGES = {"grpc": "grpcio", "grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection"}


def require() -> None:
    """Check that the packages for gRPC are installed.

    Raises:
        MissingExtraError: one is missing.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "grpc", "server.grpc_port")
