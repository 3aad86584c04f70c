"""The methods of the inference service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from appliance.api.grpc import inference_pb2 as pb
from appliance.api.grpc.converters import message_from_response, request_from_message
from appliance.api.grpc.inference_pb2_grpc import GRPCInferenceServiceServicer
from appliance.api.grpc.interceptor import recognize
from appliance.api.oip import metadata, repository
from appliance.api.oip.inference import VERSION, authorize, find_model, infer
from appliance.api.oip.inputs import TensorSpec
from appliance.core.concurrency import off_loop
from appliance.core.model import Operation
from appliance.core.request_context import current_context
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.state import RULES

Context = grpc.aio.ServicerContext[Any, Any]  # Any: each method has its own messages


class InferenceService(GRPCInferenceServiceServicer):
    """Every method raises the errors of the REST routes."""

    def __init__(self, manager: ModelManager, health: Callable[[], HealthReport]) -> None:
        self._manager = manager
        self._health = health

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Liveness of the server."""
        return pb.ServerLiveResponse(live=self._health().is_live)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Readiness of the server."""
        return pb.ServerReadyResponse(ready=self._health().is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Readiness of one model."""
        status = find_model(self._manager, request.name, request.version)
        return pb.ModelReadyResponse(ready=RULES[status.state].can_answer)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return pb.ServerMetadataResponse(
            name=metadata.SERVER, version=metadata.server_version(), extensions=metadata.EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        status = find_model(self._manager, request.name, request.version)
        inputs, outputs = metadata.tensors(status)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[VERSION],
            platform=metadata.platform(status),
            inputs=[_tensor(spec) for spec in inputs],
            outputs=[_tensor(spec) for spec in outputs],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Inference."""
        find_model(self._manager, request.model_name, request.model_version)
        authorize(self._manager, request.model_name, Operation.INFERENCE)
        inference_request = await off_loop(request.ByteSize(), request_from_message, request)
        _, headers = recognize(self._manager.authorizer, context.invocation_metadata())
        if record := current_context():
            headers |= record.trace_headers
        response = await infer(self._manager, request.model_name, inference_request, headers)
        size, is_raw = sum(len(tensor.raw) for tensor in response.outputs), bool(request.raw_input_contents)
        return await off_loop(size, message_from_response, response, inference_request.outputs, is_raw=is_raw)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Configuration of a model, as Triton has it."""
        status = find_model(self._manager, request.name, request.version)
        config = ParseDict(dict(metadata.configuration(status, request.name)), pb.ModelConfig())
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Request counts and durations of models."""
        manager = self._manager
        if request.name:
            statistics = metadata.statistics(find_model(manager, request.name, request.version), request.name)
        else:
            statistics = metadata.all_statistics(manager)
        return ParseDict(dict(statistics), pb.ModelStatisticsResponse(), ignore_unknown_fields=True)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """Every model with its state."""
        models = metadata.repository_index(self._manager, only_ready=request.ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model that was unloaded, if the config allows it."""
        await repository.load(self._manager, request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model, if the config allows it."""
        await repository.unload(self._manager, request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
