"""What each method of the service answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from appliance.api.grpc import inference_pb2 as pb
from appliance.api.grpc.converters import message_of, request_of
from appliance.api.grpc.inference_pb2_grpc import GRPCInferenceServiceServicer
from appliance.api.grpc.interceptor import recognised
from appliance.api.oip import metadata, repository
from appliance.api.oip.inference import VERSION, authorize, entry_of, infer
from appliance.api.oip.inputs import Spec
from appliance.api.oip.statistics import every_model, statistics
from appliance.core.concurrency import off_loop
from appliance.core.model import Operation
from appliance.core.request_context import current_context
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.state import RULES

Context = grpc.aio.ServicerContext[Any, Any]  # Any: each method has its own messages


class InferenceService(GRPCInferenceServiceServicer):
    """The protocol's methods over one lifecycle; they raise what REST's do."""

    def __init__(self, manager: ModelManager, standing: Callable[[], HealthReport]) -> None:
        self._manager = manager
        self._standing = standing

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether no model is beyond help."""
        return pb.ServerLiveResponse(live=self._standing().is_live)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether every model answers."""
        return pb.ServerReadyResponse(ready=self._standing().is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether one model answers."""
        entry = entry_of(self._manager, request.name, request.version)
        return pb.ModelReadyResponse(ready=RULES[entry.state].can_answer)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """What the server is."""
        return pb.ServerMetadataResponse(
            name=metadata.SERVER, version=metadata.server_version(), extensions=metadata.EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        entry = entry_of(self._manager, request.name, request.version)
        inputs, outputs = metadata.tensors(entry)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[VERSION],
            platform=metadata.platform(entry),
            inputs=[_tensor(spec) for spec in inputs],
            outputs=[_tensor(spec) for spec in outputs],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Tensors to tensors."""
        entry_of(self._manager, request.model_name, request.model_version)
        authorize(self._manager, request.model_name, Operation.INFERENCE)
        asked = await off_loop(request.ByteSize(), request_of, request)
        _, headers = recognised(self._manager.access, context.invocation_metadata())
        if record := current_context():
            headers |= record.trace_headers
        response = await infer(self._manager, request.model_name, asked, headers)
        size, is_raw = sum(len(tensor.raw) for tensor in response.outputs), bool(request.raw_input_contents)
        return await off_loop(size, message_of, response, asked.outputs, is_raw=is_raw)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """What a model takes and gives, in Triton's words."""
        entry = entry_of(self._manager, request.name, request.version)
        config = ParseDict(metadata.configuration(entry, request.name), pb.ModelConfig())
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """How often models answered, and for how long."""
        manager = self._manager
        if request.name:
            shown = [statistics(entry_of(manager, request.name, request.version), request.name)]
        else:
            shown = every_model(manager)
        told = {"model_stats": shown}
        return ParseDict(told, pb.ModelStatisticsResponse(), ignore_unknown_fields=True)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """Every model with its state."""
        models = metadata.listed(self._manager, only_ready=request.ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model that was unloaded, where the config allows it."""
        await repository.load(self._manager, request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model, where the config allows it."""
        await repository.unload(self._manager, request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _tensor(spec: Spec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
