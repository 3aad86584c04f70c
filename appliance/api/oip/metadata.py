"""Metadata of the server and its models, statistics, and the index of the model repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from appliance.api.oip.inference import VERSION
from appliance.api.oip.signatures import default_signature
from appliance.core.distribution import version
from appliance.core.errors import ForbiddenError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.core.openai_types import Json
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES, State
from appliance.tensors.tensor import TensorSpec

# State in the repository index, for each state of a model; other states are UNAVAILABLE.
_STATES: Mapping[State, str] = {
    State.READY: "READY",
    **dict.fromkeys((State.PENDING, State.FETCHING, State.LOADING, State.PROVING, State.RESTARTING), "LOADING"),
    State.DRAINING: "UNLOADING",
}


class ServerMetadata(TypedDict):
    """Name, version and supported extensions of the server."""

    name: str
    version: str
    extensions: Sequence[str]


class ModelMetadata(TypedDict):
    """Inputs and outputs of a model; both are empty if it does not take tensors."""

    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    parameters: Json
    """The description of the model, and the digest of its files."""


class ModelConfiguration(TypedDict):
    """The configuration that Triton's clients read before inference.

    Source: https://github.com/triton-inference-server/server, protocol/extension_model_configuration.md
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: Sequence[Json]
    output: Sequence[Json]


class Statistics(TypedDict):
    """Statistics of models in this process, over all protocols.

    Source: https://github.com/triton-inference-server/server, protocol/extension_statistics.md
    """

    model_stats: Sequence[Json]


class RepositoryEntry(TypedDict):
    """A name of a model with its state.

    Source: https://github.com/triton-inference-server/server, protocol/extension_model_repository.md
    """

    name: str
    version: str
    state: str
    reason: str


def describe_server() -> ServerMetadata:
    """Return the metadata of the server."""
    extensions = ("binary_tensor_data", "generate", "model_configuration", "model_repository", "statistics")
    return {"name": "appliance", "version": version(), "extensions": extensions}


def describe(status: ModelStatus, name: str) -> ModelMetadata:
    """Return the metadata of a model."""
    inputs, outputs = _tensors(status)
    facts = {key: value for key, value in status.model.describe().items() if key not in {"inputs", "outputs"}}
    digests = {"digest": status.digests["model"]} if "model" in status.digests else {}
    return {
        "name": name,
        "versions": [VERSION],
        "platform": _platform(status),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {**facts, **digests},
    }


def configuration(status: ModelStatus, name: str) -> ModelConfiguration:
    """Return the configuration of a model."""
    inputs, outputs = _tensors(status)
    return {
        "name": name,
        "platform": _platform(status),
        "backend": status.config.backend,
        "max_batch_size": 0,
        "input": [_configured(spec) for spec in inputs],
        "output": [_configured(spec) for spec in outputs],
    }


def statistics(status: ModelStatus, name: str) -> Statistics:
    """Return the statistics of one model."""
    return {"model_stats": [_statistics(status, name)]}


def all_statistics(manager: ModelManager) -> Statistics:
    """Return the statistics of each model that the caller may use, under the first name visible to the caller."""
    first: dict[str, tuple[ModelStatus, str]] = {}
    for status, name in manager.visible():
        first.setdefault(status.config.name, (status, name))
    return {"model_stats": [_statistics(status, name) for status, name in first.values()]}


def repository_index(manager: ModelManager, *, only_ready: bool = False) -> list[RepositoryEntry]:
    """Return the repository index: every name of every model with its state."""
    return [
        {
            "name": name,
            "version": VERSION,
            "state": _STATES.get(status.state, "UNAVAILABLE"),
            "reason": "" if RULES[status.state].can_answer else status.client_message(name),
        }
        for status, name in manager.visible()
        if RULES[status.state].can_answer or not only_ready
    ]


def authorize_change(manager: ModelManager, name: str, verb: str) -> None:
    """Raise a `RequestError` if the current caller may not load and unload this model."""
    manager.authorizer.require_admin()
    if not manager.config.server.admin:
        raise ForbiddenError(f"Nobody may {verb} models here; server.admin: true in the config allows it")
    manager.find(name)


def _platform(status: ModelStatus) -> str:
    """Return the engine and the class of the model."""
    return f"{status.config.backend}_{getattr(status.config, 'class_', 'model')}"


def _tensors(status: ModelStatus) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
    """Return inputs and outputs of a model; both are empty if it does not take tensors."""
    facts, operations = status.model.describe(), status.model.operations
    if Operation.INFERENCE in operations:
        inputs, outputs = (
            [TensorSpec(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in facts.get(key, ())]
            for key in ("inputs", "outputs")
        )
        return inputs, outputs
    try:
        signature = default_signature(operations)
    except UnsupportedOperationError:
        return (), ()
    return signature.specs(), signature.outputs(facts)


def _configured(spec: TensorSpec) -> Json:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": spec.shape}


def _statistics(status: ModelStatus, name: str) -> Json:
    totals = status.requests
    return {
        "name": name,
        "version": VERSION,
        "last_inference": totals.last_started_ms,
        "inference_count": totals.succeeded,
        "execution_count": totals.succeeded,
        "inference_stats": {
            "success": {"count": totals.succeeded, "ns": totals.succeeded_ns},
            "fail": {"count": totals.failed, "ns": totals.failed_ns},
        },
        "batch_stats": [],
    }
