"""The gRPC health service.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md; Kubernetes probes may name a service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from appliance.api.grpc.interceptor import recognize
from appliance.auth import authenticated
from appliance.core.errors import ApplianceError, UnknownModelError
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.state import RULES

SERVICE = "inference.GRPCInferenceService"

# Interval at which a watched state is checked.
_WATCH_SECONDS = 0.5

Context = grpc.aio.ServicerContext[Any, Any]  # Any: each method has its own messages


class Health(HealthServicer):
    """`""`, the inference service and `readiness` report readiness, `liveness` liveness, other names that model.

    A model needs a key for it, if there are keys.
    """

    def __init__(self, manager: ModelManager, health: Callable[[], HealthReport]) -> None:
        self._manager = manager
        self._health = health

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Return the status of a service; raises `UnknownModelError` if there is none of that name."""
        return _response(self._is_serving(request.service))

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:
        """Yield the status of a service now and at every change; `SERVICE_UNKNOWN` if there is none of that name."""
        # The interceptor does not authenticate streams.
        caller, _ = recognize(self._manager.authorizer, context.invocation_metadata())
        last: HealthCheckResponse | None = None
        while True:
            try:
                with authenticated(caller):
                    now = _response(self._is_serving(request.service))
            except ApplianceError:
                now = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            if now != last:
                yield now
            last = now
            await asyncio.sleep(_WATCH_SECONDS)

    def _is_serving(self, service: str) -> bool:
        if service in {"", SERVICE, "readiness"}:
            return self._health().is_ready
        if service == "liveness":
            return self._health().is_live
        try:
            return RULES[self._manager.find(service).state].can_answer
        except UnknownModelError as error:
            raise UnknownModelError(
                f"There is no service {service[:80]!r}; it may be empty, {SERVICE}, liveness, readiness, or a model's "
                "name"
            ) from error


def _response(is_serving: bool) -> HealthCheckResponse:
    return HealthCheckResponse(status=HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING)
