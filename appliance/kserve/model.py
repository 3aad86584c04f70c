"""KServe's classes of models."""

# ruff: noqa: ARG002 - methods have the parameters of those that override them

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from appliance.kserve.constants.constants import PredictorProtocol
from appliance.kserve.predictor_config import PredictorConfig
from appliance.python_api import tensor_model
from appliance.python_api.base_model import BasePythonModel, overridable, overridden_method
from appliance.python_api.tensor_model import Payload
from appliance.python_api.user_code import UserCodeError, call_method

if TYPE_CHECKING:
    from appliance.kserve.predictor_client import PredictorClient

__all__ = ["BaseKServeModel", "Model", "PredictorProtocol"]


class BaseKServeModel(BasePythonModel):
    """KServe's steps of a model's life besides `load` and `stop`; each may be plain or asynchronous."""

    # As in KServe, a model is ready once it is loaded: it may implement a method only to refuse its requests.
    proof: Mapping[str, Any] | None = None

    engine: bool = False
    """Whether `start_engine` is called after `load`, and `stop_engine` at the end."""

    # Asynchronous, because a class that overrides it awaits it.
    @overridable
    async def healthy(self) -> Any:
        """Return whether it can answer now."""
        return self.ready

    @overridable
    def start(self) -> Any:
        """Set the model up; called after `load`."""
        self.ready = True

    async def start_engine(self) -> Any:
        """Start an engine in the server's event loop; called after `start`. The model is ready when it returns."""
        self.ready = True

    def stop_engine(self) -> Any:
        """Stop the engine; called after `stop`."""
        self.ready = False

    async def _run_load(self) -> bool:
        is_loaded = await super()._run_load()
        if (start := overridden_method(self, "start")) is not None:
            await call_method(start)
        # The steps before may have set it.
        if self.engine:
            await call_method(self.start_engine)
        return is_loaded or self.engine

    async def _run_stop(self) -> None:
        await super()._run_stop()
        if self.engine:
            with suppress(UserCodeError):
                await call_method(self.stop_engine)


class Model(BaseKServeModel, tensor_model.Model):
    """A model, or a transformer, which sends its requests to a predictor; `ModelServer` sets its `predictor_config`."""

    passes_bytes = True

    predictor_config: PredictorConfig | None = None
    """Where requests are sent to; None, or one without a host, for a model that computes itself."""

    _predictor: PredictorClient | None = None

    def __init__(self, name: str, return_response_headers: bool = False) -> None:  # noqa: FBT001, FBT002, RUF100 - KServe's
        super().__init__(name, return_response_headers)
        # As in KServe, where plain steps run in the event loop: they may keep what they like in the object.
        self.step_lock = threading.Lock()

    # Asynchronous, because a class that overrides a step awaits this one.
    @overridable
    async def preprocess(self, payload: Payload, headers: Mapping[str, str] | None = None) -> Any:
        """Return what `predict` gets."""
        return payload

    async def predict(
        self,
        payload: Payload,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Return the response of the predictor, if there is one.

        Raises:
            RequestError: it answers with an error, whose status and text this has.
            NotImplementedError: there is no predictor.
        """
        config = self.predictor_config
        if config is None or not config.predictor_host:
            raise NotImplementedError("predict is not overridden, and there is no --predictor_host")
        received = {} if response_headers is None else response_headers
        return await self._client(config).infer(payload, self.name, headers or {}, received)

    @overridable
    async def postprocess(
        self,
        result: Any,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Return what the client gets."""
        return result

    async def healthy(self) -> Any:
        """Return whether it can answer now; with `predictor_health_check`, its predictor must be ready, too.

        Raises:
            NotReadyError: the predictor is not ready.
        """
        config = self.predictor_config
        if config is not None and config.predictor_host and config.predictor_health_check:
            await self._client(config).require_ready(self.name)
        return self.ready

    async def _run_stop(self) -> None:
        await super()._run_stop()
        if self._predictor is not None:
            await self._predictor.close()

    def _client(self, config: PredictorConfig) -> PredictorClient:
        if self._predictor is None:
            # Most models need no clients.
            from appliance.kserve.predictor_client import create_client

            self._predictor = create_client(config)
        return self._predictor
