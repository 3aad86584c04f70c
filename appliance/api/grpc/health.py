"""gRPC's own health service, for probes.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md; Kubernetes probes may name a service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from appliance.api.grpc.interceptor import recognised
from appliance.auth import authenticated
from appliance.core.errors import ApplianceError, UnknownModelError
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.state import RULES

SERVICE = "inference.GRPCInferenceService"

# How late a watcher may hear of a change.
_LOOK_SECONDS = 0.5

Context = grpc.aio.ServicerContext[Any, Any]  # Any: each method has its own messages


class Health(HealthServicer):
    """
    "" and the service are whether every model answers, as are "readiness"; "liveness" is whether none is beyond help.

    Any other name is a model's, which needs a key for it where there are keys.
    """

    def __init__(self, manager: ModelManager, standing: Callable[[], HealthReport]) -> None:
        self._manager = manager
        self._standing = standing

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Where a service stands now; raises `UnknownModelError` for one that nobody has."""
        return _answer(self._is_good(request.service))

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:
        """Where a service stands, now and whenever that changes; one that nobody has is unknown."""
        # The guard leaves streams alone, so the caller is recognised here.
        caller, _ = recognised(self._manager.access, context.invocation_metadata())
        last: HealthCheckResponse | None = None
        while True:
            try:
                with authenticated(caller):
                    now = _answer(self._is_good(request.service))
            except ApplianceError:
                now = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            if now != last:
                yield now
            last = now
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_good(self, service: str) -> bool:
        if service in {"", SERVICE, "readiness"}:
            return self._standing().is_ready
        if service == "liveness":
            return self._standing().is_live
        try:
            return RULES[self._manager.find(service).state].can_answer
        except UnknownModelError as error:
            raise UnknownModelError(
                f"There is no service {service[:80]!r}; it may be empty, {SERVICE}, liveness, readiness, or a model's "
                "name"
            ) from error


def _answer(is_good: bool) -> HealthCheckResponse:
    return HealthCheckResponse(status=HealthCheckResponse.SERVING if is_good else HealthCheckResponse.NOT_SERVING)
