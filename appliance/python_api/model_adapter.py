"""Makes a model written in Python a `Model`: decodes requests, calls the user's methods, encodes their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from multidict import CIMultiDict, CIMultiDictProxy

from appliance.core.concurrency import off_loop
from appliance.core.errors import LoadError, UnsupportedOperationError
from appliance.core.model import DependsOnModels, Model, ModelRequest, ModelResponse
from appliance.core.openai_types import SMALLEST_REQUESTS
from appliance.python_api.base_model import BasePythonModel, overridden_method
from appliance.python_api.model_lifecycle import ModelLifecycle
from appliance.python_api.openai_model import METHODS, RawRequest
from appliance.python_api.responses import build_response
from appliance.python_api.serialization import InvalidResultError, describe_type, to_json
from appliance.python_api.tensor_model import Model as TensorModel
from appliance.python_api.tensor_model import TensorHandler
from appliance.python_api.types import decode_request
from appliance.python_api.user_code import call_method

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class PythonModelAdapter:
    """A `Model` that calls the methods of a model written in Python."""

    def __init__(self, model: BasePythonModel) -> None:
        self._model = model
        methods = {operation: overridden_method(model, name) for operation, name in METHODS.items()}
        self._methods = {operation: method for operation, method in methods.items() if method is not None}
        self._backing = model.backing
        self._lifecycle = ModelLifecycle.of(model)
        self._tensors = TensorHandler(model) if isinstance(model, TensorModel) else None
        self.operations = frozenset(self._methods)
        if self._tensors is not None:
            self.operations |= self._tensors.operations
        if self._backing is not None:
            self.operations |= self._backing.operations

    @property
    def warmup_request(self) -> ModelRequest | None:
        fields = self._model.proof
        if not isinstance(fields, Mapping | None):
            raise LoadError(
                f"{type(self._model).__name__}.proof is {describe_type(fields)}; must be a mapping, or None"
            )
        if fields is None:
            return None
        operations = [each for each in SMALLEST_REQUESTS if each in self._methods]
        if not operations:
            return self._backing.warmup_request if self._backing else None
        # A prompt belongs to a completion, messages to a chat.
        content = fields.keys() - {"max_tokens", "temperature"}
        fitting = [each for each in operations if content & SMALLEST_REQUESTS[each].keys()]
        operation = (fitting or operations)[0]
        body = {"model": self._model.name, **SMALLEST_REQUESTS[operation], **fields}
        return ModelRequest(operation, msgspec.json.encode(to_json(body)))

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        await self._lifecycle.start(self, artifacts)

    async def check(self) -> None:
        await self._lifecycle.check()

    async def handle(self, request: ModelRequest) -> ModelResponse:
        try:
            return await self._handle(request)
        except NotImplementedError as error:
            raise UnsupportedOperationError(
                f"The model {self._model.name!r} does not support {request.operation}", code="unsupported_operation"
            ) from error
        except InvalidResultError as error:
            log.error("response.invalid", model=self._model.name, operation=request.operation, reason=str(error))
            raise

    async def _handle(self, request: ModelRequest) -> ModelResponse:
        if self._tensors is not None and request.operation in self._tensors.operations:
            return await self._tensors.handle(request)
        method = self._methods.get(request.operation)
        if method is None:
            if self._backing is None:
                raise AssertionError("a request for an operation that is not supported; this is a bug")
            return await self._backing.handle(request)
        decoded = await off_loop(len(request.body), decode_request, request)
        headers = CIMultiDictProxy(CIMultiDict(request.headers))
        raw_request = RawRequest(headers, request.path, request.query)
        result = await call_method(method, decoded, raw_request, {"headers": dict(request.headers)})
        return await build_response(result, decoded, request.operation, self._model.name)

    def describe(self) -> Mapping[str, Any]:
        facts = self._backing.describe() if self._backing else {}
        return {**facts, **self._tensors.describe()} if self._tensors else facts

    async def close(self) -> None:
        await self._lifecycle.stop(self)


class DependentModelAdapter(PythonModelAdapter):
    """The same for a model whose backing needs other servers."""

    def __init__(self, model: BasePythonModel, backing: DependsOnModels) -> None:
        super().__init__(model)
        self._dependent = backing

    def upstreams(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """Return the state of each server, for probes."""
        return self._dependent.upstreams()


def adapt(model: BasePythonModel) -> Model:
    """Return a model written in Python as a `Model`."""
    backing = model.backing
    return DependentModelAdapter(model, backing) if isinstance(backing, DependsOnModels) else PythonModelAdapter(model)
