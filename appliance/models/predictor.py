"""The model class `predictor`: a classic model that a framework computes, for the Open Inference Protocol."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from appliance.config.engine import FrameworkConfig
from appliance.config.models import PredictorConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import LoadError, RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.core.suggestions import did_you_mean
from appliance.core.system import usable_cores
from appliance.tensors.arrays import to_tensor
from appliance.tensors.codec import LENGTH_HEADER, decode, read_request, write_request, write_response
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, Parameters, TensorSpec

if TYPE_CHECKING:
    from appliance.engines.frameworks.features import Array, Features
    from appliance.engines.frameworks.framework import Framework

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_PROBABILITIES = "predict_proba"


class PredictorModel:
    """A predictor; each request is computed in a thread, and as many at once as there are cores."""

    operations = frozenset({Operation.INFERENCE, Operation.PREDICTION})

    def __init__(self, config: PredictorConfig, engine: FrameworkConfig) -> None:
        self._name, self._engine = config.name, engine
        self._framework: Framework | None = None
        self._example: InferenceRequest | None = None
        self._inputs: Sequence[TensorSpec] = ()
        self._outputs: Sequence[TensorSpec] = ()
        self.unproven: str | None = None
        """See `MayBeUnproven`."""

    @property
    def warmup_request(self) -> ModelRequest | None:
        """The config's, or a request of zeros; None if the model's inputs are unknown."""
        if self._engine.warmup is not None:
            return ModelRequest(Operation.PREDICTION, msgspec.json.encode(self._engine.warmup))
        if self._example is None:
            return None
        body, headers = write_request(self._example)
        return ModelRequest(Operation.INFERENCE, body, headers)

    @property
    def max_concurrent(self) -> int | None:
        """Requests computed at once: so many that their threads fill the cores."""
        return max(1, usable_cores() // getattr(self._engine, "threads", 1))

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        await in_thread(self._load, artifacts["model"])

    async def check(self) -> None:
        """Return: there is no process that could have died."""

    async def handle(self, request: ModelRequest) -> ModelResponse:
        answer = self._infer if request.operation is Operation.INFERENCE else self._predict
        # With the request's id for the log.
        return await in_thread(contextvars.copy_context().run, answer, request)

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        if self._framework is None:
            return {}
        from appliance.engines.frameworks.framework import specs_json

        columns = {"columns": list(self._framework.columns)} if self._framework.columns else {}
        inputs, outputs = specs_json(self._inputs), specs_json(self._outputs)
        return {"framework": self._engine.framework, **columns, "inputs": inputs, "outputs": outputs}

    async def close(self) -> None:
        self._framework = None

    def _load(self, path: Path) -> None:
        from appliance.engines.frameworks import features
        from appliance.engines.frameworks.framework import describe, fault, load

        framework = load(self._engine, path)
        warmup = self._engine.warmup
        example = framework.example() if warmup is None else None
        proof: Features | None = None
        outputs: Mapping[str, Array] = {}
        try:
            if warmup is not None:
                proof = features.of_json(warmup)
            elif example is not None:
                proof = features.of_tensors(example)
            outputs = framework.predict(proof) if proof is not None else {}
        except framework.input_errors as error:
            name, reason = ("a row of zeros" if warmup is None else "engine.warmup"), fault(error)
            if framework.knows_types or warmup is not None:
                raise LoadError(
                    f"{name} cannot be computed: {reason}; set engine.warmup to a request that the model answers"
                ) from error
            # The types of its columns are unknown, and zeros may be none of its categories.
            self.unproven = f"loaded; set engine.warmup to prove that it works, because {name} is refused: {reason}"
            log.warning("model.unproven", model=self._name, reason=self.unproven)
            example = proof = None
        self._example = example
        self._inputs, self._outputs = framework.known_inputs(proof), framework.outputs or describe(outputs)
        self._framework = framework

    def _infer(self, request: ModelRequest) -> ModelResponse:
        from appliance.engines.frameworks import features

        inference = read_request(request.body, request.headers.get(LENGTH_HEADER))
        outputs = self._compute(lambda: features.of_tensors(inference), inference.parameters)
        tensors = [to_tensor(name, array) for name, array in outputs.items()]
        body, headers = write_response(InferenceResponse(self._name, None, tensors, inference.id), prefers_binary=True)
        return ModelResponse(body, headers=headers)

    def _predict(self, request: ModelRequest) -> ModelResponse:
        from appliance.engines.frameworks import features

        payload: Json = decode(request.body, dict[str, Any])
        parameters = payload.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise RequestError("parameters must be an object", param="parameters")
        outputs = self._compute(lambda: features.of_json(payload), parameters)
        return ModelResponse(msgspec.json.encode({"predictions": features.predictions(outputs)}))

    def _compute(self, read: Callable[[], Features], parameters: Parameters) -> Mapping[str, Array]:
        from appliance.engines.frameworks.framework import fault

        framework = self._framework
        if framework is None:
            raise AssertionError("a request to a model that is not loaded; this is a bug")
        wanted = parameters.get(_PROBABILITIES)
        for name in parameters.keys() - {_PROBABILITIES} if framework.has_probabilities else ():
            if hint := did_you_mean(name, (_PROBABILITIES,)):
                raise RequestError(f"There is no parameter {name!r}; {hint}", param=name)
        if wanted is not None and not (framework.has_probabilities and isinstance(wanted, bool)):
            problem = "must be true or false" if framework.has_probabilities else f"is not for {self._engine.framework}"
            raise RequestError(f"{_PROBABILITIES} {problem}", param=_PROBABILITIES)
        features = read()
        try:
            return framework.predict(features, has_probabilities=wanted)
        except RequestError:
            raise
        except framework.input_errors as error:
            # The model has computed its warm-up request, so the features are at fault.
            raise RequestError(f"The model {self._name!r} cannot compute these inputs: {fault(error)}") from error
