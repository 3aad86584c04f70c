"""A model written in Python as a model of the contract: requests decoded once, answers encoded, faults translated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from multidict import CIMultiDict, CIMultiDictProxy

from appliance.core.concurrency import off_loop
from appliance.core.errors import LoadError, UnsupportedOperationError
from appliance.core.model import DependsOnModels, Model, ModelRequest, ModelResponse, Operation
from appliance.python_api.base_model import BasePythonModel, overridden
from appliance.python_api.invoke import called
from appliance.python_api.model_lifecycle import ModelLifecycle
from appliance.python_api.openai_model import METHODS, RawRequest
from appliance.python_api.request_types import request_of
from appliance.python_api.response_builder import reply
from appliance.python_api.serialization import ModelFaultError, kind_of, plain
from appliance.python_api.tensor_model import Model as TensorModel
from appliance.python_api.tensor_model import Steps

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# The smallest request of each operation.
_PROOFS: Mapping[Operation, Mapping[str, Any]] = {  # Any: JSON values
    Operation.CHAT_COMPLETION: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0},
    Operation.COMPLETION: {"prompt": "Hello", "max_tokens": 1, "temperature": 0},
    Operation.EMBEDDING: {"input": "Hello"},
    Operation.RERANK: {"query": "Hello", "documents": ["Hello"]},
}


class PythonModelAdapter:
    """Has a model written in Python answer calls."""

    def __init__(self, model: BasePythonModel) -> None:
        self._model = model
        named = {operation: overridden(model, name) for operation, name in METHODS.items()}
        self._methods = {operation: method for operation, method in named.items() if method is not None}
        self._backing = model.backing
        self._life = ModelLifecycle.of(model)
        self._steps = Steps(model) if isinstance(model, TensorModel) else None
        of_steps = self._steps.operations if self._steps else frozenset()
        self.operations = (
            of_steps | frozenset(self._methods) | (self._backing.operations if self._backing else frozenset())
        )

    @property
    def warmup_request(self) -> ModelRequest | None:
        asked = self._model.proof
        if not isinstance(asked, Mapping | None):
            raise LoadError(f"{type(self._model).__name__}.proof is {kind_of(asked)}; must be a mapping, or None")
        operations = [each for each in _PROOFS if each in self._methods]
        if asked is None or not operations:
            return self._backing.warmup_request if self._backing and asked is not None else None
        # A prompt belongs to a completion, messages to a chat.
        fits = [each for each in operations if asked.keys() & set(_PROOFS[each]) - {"max_tokens", "temperature"}]
        operation = (fits or operations)[0]
        return ModelRequest(
            operation, msgspec.json.encode(plain({"model": self._model.name, **_PROOFS[operation], **asked}))
        )

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        await self._life.begin(self, artifacts)

    async def check(self) -> None:
        await self._life.check()

    async def handle(self, call: ModelRequest) -> ModelResponse:
        try:
            return await self._answer(call)
        except NotImplementedError as error:
            raise UnsupportedOperationError(
                f"The model {self._model.name!r} does not support {call.operation}", code="unsupported_operation"
            ) from error
        except ModelFaultError as error:
            log.error("answer.malformed", model=self._model.name, operation=call.operation, reason=str(error))
            raise

    async def _answer(self, call: ModelRequest) -> ModelResponse:
        if self._steps is not None and call.operation in self._steps.operations:
            return await self._steps.handle(call)
        method = self._methods.get(call.operation)
        if method is None:
            return await self._behind.handle(call)
        request = await off_loop(len(call.body), request_of, call)
        headers = CIMultiDictProxy(CIMultiDict(call.headers))
        raw_request = RawRequest(headers, call.path, call.query)
        returned = await called(method, request, raw_request, {"headers": dict(call.headers)})
        return await reply(returned, request, call.operation, self._model.name)

    def describe(self) -> Mapping[str, Any]:
        facts = self._backing.describe() if self._backing else {}
        return {**facts, **self._steps.describe()} if self._steps else facts

    async def close(self) -> None:
        await self._life.end(self)

    @property
    def _behind(self) -> Model:
        if self._backing is None:
            raise AssertionError("asked what it does not offer; this is a bug")
        return self._backing


class DependentModelAdapter(PythonModelAdapter):
    """The same for a model behind which servers elsewhere answer."""

    def __init__(self, model: BasePythonModel, backing: DependsOnModels) -> None:
        super().__init__(model)
        self._dependent = backing

    def upstreams(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """How each of them is, for probes."""
        return self._dependent.upstreams()


def bridged(model: BasePythonModel) -> Model:
    """The model as one of the contract."""
    backing = model.backing
    return DependentModelAdapter(model, backing) if isinstance(backing, DependsOnModels) else PythonModelAdapter(model)
