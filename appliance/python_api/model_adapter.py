"""Makes a model written in Python a `Model`: its lifecycle, and its methods between requests and responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import structlog

from appliance.core.concurrency import off_loop
from appliance.core.errors import (
    ApplianceError,
    EngineDeadError,
    LoadError,
    UnavailableError,
    UnsupportedOperationError,
)
from appliance.core.model import DependsOnModels, ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import SMALLEST_REQUESTS
from appliance.over_chat import respond_over_chat
from appliance.python_api import tensor_model
from appliance.python_api.base_model import BasePythonModel, NotReadyError, overridden_method
from appliance.python_api.openai_model import METHODS, ResponseHead
from appliance.python_api.raw_request import RawRequest
from appliance.python_api.responses import InvalidResultError, build_response, checked_headers, describe_type, to_json
from appliance.python_api.types import decode_request
from appliance.python_api.user_code import UserCodeError, call_method, code_name, describe_exception, user_code

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_ATTRIBUTE = "_appliance_lifecycle"

# A count of tokens is none of them: it would cost a whole answer of a class that has no limit of tokens.
_OVER_CHAT = frozenset({Operation.MESSAGE, Operation.RESPONSE})

# Longer than a garbage collection or a slow disk, shorter than a platform waits before it gives up.
_HEALTH_TIMEOUT_SECONDS = 30.0

# Health is checked twice a second, and a fault usually stays.
_LOG_INTERVAL_SECONDS = 600.0


class PythonModelAdapter:
    """A `Model` that calls the methods of a model written in Python; it has `upstreams` if the model's backing does."""

    def __init__(self, model: BasePythonModel) -> None:
        self._adopt(model)
        backing: object = model.backing
        if isinstance(backing, DependsOnModels):
            self.upstreams = backing.upstreams

    def _adopt(self, model: BasePythonModel) -> None:
        self._model, self._backing = model, model.backing
        # Several adapters may share a model.
        self._lifecycle: _Lifecycle = vars(model).setdefault(_ATTRIBUTE, _Lifecycle(model))
        methods = {operation: overridden_method(model, name) for operation, name in METHODS.items()}
        self._methods = {operation: method for operation, method in methods.items() if method is not None}
        self._tensors = model if isinstance(model, tensor_model.Model) else None
        self._tensor_operations = tensor_model.operations(self._tensors) if self._tensors else frozenset[Operation]()
        self.operations = frozenset(self._methods) | self._tensor_operations
        if self._backing is not None:
            self.operations |= self._backing.operations
        elif Operation.CHAT_COMPLETION in self._methods:
            self.operations |= _OVER_CHAT

    @property
    def passes_bytes(self) -> bool:
        """Whether bodies that are not JSON are passed to it."""
        return self._tensors is not None and self._tensors.passes_bytes

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
        if not operations and self._tensors is not None and self._tensor_operations:
            return tensor_model.warmup_request(self._tensors)
        if not operations:
            return self._backing.warmup_request if self._backing else None
        # A prompt belongs to a completion, messages to a chat.
        content = fields.keys() - {"max_tokens", "temperature"}
        fitting = [each for each in operations if content & SMALLEST_REQUESTS[each].keys()]
        operation = (fitting or operations)[0]
        body = {"model": self._model.name, **SMALLEST_REQUESTS[operation], **fields}
        return ModelRequest(operation, msgspec.json.encode(to_json(body)))

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        if not self.operations:
            methods = ", ".join(sorted({*METHODS.values(), *tensor_model.METHODS.values()}))
            raise LoadError(f"{type(self._model).__name__} answers nothing; override one of the methods {methods}")
        await self._lifecycle.start(self, artifacts)

    async def check(self) -> None:
        await self._lifecycle.check()

    async def handle(self, request: ModelRequest) -> ModelResponse:
        try:
            return await self._handle(request)
        except NotImplementedError as error:
            raise UnsupportedOperationError(
                f"This model does not support {request.operation}", code="unsupported_operation"
            ) from error
        except InvalidResultError as error:
            log.error("response.invalid", model=self._model.name, operation=request.operation, reason=str(error))
            raise

    async def _handle(self, request: ModelRequest) -> ModelResponse:
        if self._tensors is not None and request.operation in self._tensor_operations:
            return await tensor_model.handle(self._tensors, request)
        method = self._methods.get(request.operation)
        if method is None:
            if self._backing is None and request.operation in self.operations & _OVER_CHAT:
                return await respond_over_chat(request, self._model.name, self._handle)
            if self._backing is None:
                raise AssertionError("a request for an operation that is not supported; this is a bug")
            return await self._backing.handle(request)
        decoded = await off_loop(len(request.body), decode_request, request)
        head = ResponseHead()
        context = {"headers": dict(request.headers), "response": head}
        result = await call_method(method, decoded, RawRequest.of(request), context)
        name = request.model or decoded.model or self._model.name
        response = await build_response(result, decoded, request.operation, name)
        return replace(response, headers={**response.headers, **checked_headers(head.headers)})

    def describe(self) -> Mapping[str, Any]:
        facts = self._backing.describe() if self._backing else {}
        # Methods of a model that is not loaded may need what `load` sets.
        if self._tensors is None or not self._lifecycle.is_loaded:
            return facts
        return {**facts, **tensor_model.describe(self._tensors)}

    async def close(self) -> None:
        await self._lifecycle.stop(self)


class _Lifecycle:
    """Loads a model for its first owner and stops it after its last one; checks its health in the background."""

    def __init__(self, model: BasePythonModel) -> None:
        self._model = model
        self._health = _HealthPoller(overridden_method(model, "healthy"))
        self._owners: set[object] = set()
        self._lock = asyncio.Lock()
        self.is_loaded = False

    async def start(self, owner: object, artifacts: Mapping[str, Path]) -> None:
        """Load the model and its backing, unless that is done; raises `LoadError` if its `load` failed."""
        async with self._lock:
            is_first = not self._owners
            self._owners.add(owner)
            if is_first:
                await self._load(artifacts)

    async def check(self) -> None:
        if self._model.backing is not None:
            await self._model.backing.check()
        if not self._model.ready:
            raise UnavailableError("its attribute `ready` is False")
        self._health.check()

    async def stop(self, owner: object) -> None:
        """Stop the model if this is its last owner; safe to call twice."""
        async with self._lock:
            if owner in self._owners and len(self._owners) == 1:
                await self._stop()
            self._owners.discard(owner)

    async def _load(self, artifacts: Mapping[str, Path]) -> None:
        model = self._model
        if model.backing is not None:
            await model.backing.load(artifacts)
        if "model" in artifacts:
            model.model_dir = artifacts["model"]
        try:
            is_loaded = await model._run_load()
        except UserCodeError as error:
            raise LoadError(f"{error}; the log says where in your code") from error
        if not is_loaded:
            raise LoadError(f"{type(model).__name__}.load() returned False; its own log may say why")
        model.ready = self.is_loaded = True
        await self._health.start()

    async def _stop(self) -> None:
        self.is_loaded = False
        await self._health.close()
        await self._model._run_stop()
        if self._model.backing is not None:
            await self._model.backing.close()


class _HealthPoller:
    """Runs a model's `healthy` in the background, so that a slow one blocks no probe; without one, all is well."""

    def __init__(self, healthy: Callable[..., Any] | None) -> None:
        self._healthy = healthy
        self._started_at = 0.0
        self._task: asyncio.Task[bool] | None = None
        self._logged_at: dict[object, float] = {}
        """When each kind of fault was logged, since the model was last healthy."""

    async def start(self) -> None:
        """Run it once, and wait for the result."""
        if self._healthy is not None:
            await asyncio.wait({self._run(self._healthy)}, timeout=_HEALTH_TIMEOUT_SECONDS)

    def check(self) -> None:
        """Return if the last result was good, and run it again.

        Raises:
            EngineDeadError: the model cannot answer any more.
            UnavailableError: it cannot answer now.
        """
        if self._healthy is None or self._task is None:
            return
        if not self._task.done():
            if (seconds := time.monotonic() - self._started_at) > _HEALTH_TIMEOUT_SECONDS:
                raise UnavailableError(f"its healthy() has not returned for {seconds:.0f} seconds")
            return
        finished = self._task
        self._run(self._healthy)
        try:
            is_healthy = finished.result()
        except (EngineDeadError, NotReadyError):
            raise
        except UnavailableError as error:
            # What follows "because" is for operators.
            raise UnavailableError(f"its healthy() says that it cannot answer now, because {error}") from error
        except (ApplianceError, NotImplementedError) as error:
            # Clients see the text of what is raised here: the error itself is for the log.
            self._log(error)
            raise UnavailableError("its healthy() raised an error; the log says why") from error
        self._logged_at.clear()
        if not is_healthy:
            raise UnavailableError("its healthy() returned False")

    async def close(self) -> None:
        """Cancel the running check."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _run(self, healthy: Callable[..., Any]) -> asyncio.Task[bool]:
        self._started_at = time.monotonic()
        self._task = asyncio.create_task(_is_healthy(healthy))
        return self._task

    def _log(self, error: Exception) -> None:
        """Log a fault that is new or was not logged for long; its text may contain the time, so its kind decides."""
        now = time.monotonic()
        frames = error.frames if isinstance(error, UserCodeError) else ()
        kind = (type(error.__cause__ or error), *frames)
        if now - self._logged_at.get(kind, -_LOG_INTERVAL_SECONDS) < _LOG_INTERVAL_SECONDS:
            return
        self._logged_at[kind] = now
        if isinstance(error, UserCodeError):
            error.log()
        log.error("model.unhealthy", reason=describe_exception(error))


async def _is_healthy(healthy: Callable[..., Any]) -> bool:
    # The conversion to bool may run code of the user too.
    with user_code(code_name(healthy), is_logged=False):
        return bool(await call_method(healthy, is_logged=False))
