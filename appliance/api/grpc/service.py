"""The gRPC services: inference, and health.

Source of health: https://github.com/grpc/grpc/blob/master/doc/health-checking.md; Kubernetes probes may name a service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
import msgspec
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from appliance.api.grpc.interceptor import recognize
from appliance.api.oip import metadata
from appliance.api.oip.inference import authorize, find_model, infer
from appliance.api.probes import Health
from appliance.auth import authenticated
from appliance.core.concurrency import off_loop
from appliance.core.errors import ApplianceError, UnknownModelError
from appliance.core.model import Operation
from appliance.core.request_context import current_context
from appliance.models.manager import ModelManager
from appliance.models.state import RULES
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.converters import message_from_response, request_from_message
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceServicer

SERVICE = "inference.GRPCInferenceService"

# Interval at which a watched state is checked.
_WATCH_SECONDS = 0.5

MessageT = TypeVar("MessageT", bound=Message)

Context = grpc.aio.ServicerContext[Any, Any]  # Any: each method has its own messages


class InferenceService(GRPCInferenceServiceServicer):
    """Every method raises the errors of the REST routes."""

    def __init__(self, manager: ModelManager, health: Health) -> None:
        self._manager = manager
        self._health = health

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._health().is_live)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._health().is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        status = find_model(self._manager, request.name, request.version)
        return pb.ModelReadyResponse(ready=RULES[status.state].can_answer)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return _fill(pb.ServerMetadataResponse(), metadata.describe_server())

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        status = find_model(self._manager, request.name, request.version)
        return _fill(pb.ModelMetadataResponse(), metadata.describe(status, request.name))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        find_model(self._manager, request.model_name, request.model_version)
        authorize(self._manager, request.model_name, Operation.INFERENCE)
        inference_request = await off_loop(request.ByteSize(), request_from_message, request)
        _, headers = recognize(self._manager.authorizer, context.invocation_metadata())
        if record := current_context():
            headers |= record.trace_headers
        response = await infer(self._manager, request.model_name, inference_request, headers)
        if response.headers:
            # The initial metadata is sent already.
            context.set_trailing_metadata(tuple(response.headers.items()))
        size, is_raw = sum(len(tensor.raw) for tensor in response.outputs), bool(request.raw_input_contents)
        return await off_loop(size, message_from_response, response, inference_request.outputs, is_raw=is_raw)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        status = find_model(self._manager, request.name, request.version)
        return _fill(pb.ModelConfigResponse(), {"config": metadata.configuration(status, request.name)})

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        if request.name:
            statistics = metadata.statistics(find_model(self._manager, request.name, request.version), request.name)
        else:
            statistics = metadata.all_statistics(self._manager)
        return _fill(pb.ModelStatisticsResponse(), statistics)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        models = metadata.repository_index(self._manager, only_ready=request.ready)
        return _fill(pb.RepositoryIndexResponse(), {"models": models})

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        metadata.authorize_change(self._manager, request.model_name, "load")
        await self._manager.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        metadata.authorize_change(self._manager, request.model_name, "unload")
        await self._manager.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


class HealthService(HealthServicer):
    """`""`, the inference service and `readiness` report readiness, `liveness` liveness, other names that model.

    A model needs a key for it, if there are keys.
    """

    def __init__(self, manager: ModelManager, health: Health) -> None:
        self._manager = manager
        self._health = health

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Return the status of a service; raises `UnknownModelError` if there is none of that name."""
        return self._response(request.service)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:
        """Yield the status of a service now and at every change; `SERVICE_UNKNOWN` if there is none of that name."""
        # The interceptor does not authenticate streams.
        caller, _ = recognize(self._manager.authorizer, context.invocation_metadata())
        last: HealthCheckResponse | None = None
        while True:
            try:
                with authenticated(caller):
                    now = self._response(request.service)
            except ApplianceError:
                now = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            if now != last:
                yield now
            last = now
            await asyncio.sleep(_WATCH_SECONDS)

    def _response(self, service: str) -> HealthCheckResponse:
        if service in {"", SERVICE, "readiness"}:
            is_serving = self._health().is_ready
        elif service == "liveness":
            is_serving = self._health().is_live
        else:
            try:
                is_serving = RULES[self._manager.find(service).state].can_answer
            except UnknownModelError as error:
                raise UnknownModelError(
                    f"There is no service {service[:80]!r}; it may be empty, {SERVICE}, liveness, readiness, or a "
                    "model's name"
                ) from error
        status = HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)


def _fill(message: MessageT, fields: object) -> MessageT:
    """Return a message with the fields of a REST response that it has."""
    return ParseDict(msgspec.to_builtins(fields), message, ignore_unknown_fields=True)
