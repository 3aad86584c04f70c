"""Metadata of the server and its models, repository index and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypedDict

from appliance.api.oip.inference import VERSION
from appliance.api.oip.inputs import TensorSpec
from appliance.api.oip.signatures import default_signature
from appliance.core.errors import UnsupportedOperationError
from appliance.core.model import Operation
from appliance.core.openai_types import Json
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES, State

SERVER = "appliance"

EXTENSIONS = ("binary_tensor_data", "generate", "model_configuration", "model_repository", "statistics")

# State in the repository index, for each state of a model; other states are UNAVAILABLE.
_REPOSITORY_STATES: Mapping[State, str] = {
    State.READY: "READY",
    State.PENDING: "LOADING",
    State.FETCHING: "LOADING",
    State.LOADING: "LOADING",
    State.PROVING: "LOADING",
    State.RESTARTING: "LOADING",
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
    """A name of a model with its state."""

    name: str
    version: str
    state: str
    reason: str


def server_version() -> str:
    """Return the version of the appliance."""
    return version("appliance")


def platform(status: ModelStatus) -> str:
    """Return the engine and the class of the model."""
    return f"{status.config.backend}_{getattr(status.config, 'class_', 'model')}"


def tensors(status: ModelStatus) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
    """Return inputs and outputs of a model; both are empty if it does not take tensors."""
    facts, operations = status.model.describe(), status.model.operations
    if Operation.INFERENCE in operations:
        return _declared(facts.get("inputs", ())), _declared(facts.get("outputs", ()))
    try:
        signature = default_signature(operations)
    except UnsupportedOperationError:
        return (), ()
    return signature.specs(), signature.outputs(facts)


def describe(status: ModelStatus, name: str) -> ModelMetadata:
    """Return the metadata of a model."""
    inputs, outputs = tensors(status)
    facts = {key: value for key, value in status.model.describe().items() if key not in {"inputs", "outputs"}}
    digests = {"digest": status.digests["model"]} if "model" in status.digests else {}
    return {
        "name": name,
        "versions": [VERSION],
        "platform": platform(status),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {**facts, **digests},
    }


def configuration(status: ModelStatus, name: str) -> ModelConfiguration:
    """Return the configuration of a model."""
    inputs, outputs = tensors(status)
    return {
        "name": name,
        "platform": platform(status),
        "backend": platform(status).split("_")[0],
        "max_batch_size": 0,
        "input": [_configured(spec) for spec in inputs],
        "output": [_configured(spec) for spec in outputs],
    }


def repository_index(manager: ModelManager, *, only_ready: bool = False) -> list[RepositoryEntry]:
    """Return the repository index: every name of every model with its state."""
    return [
        {
            "name": name,
            "version": VERSION,
            "state": _REPOSITORY_STATES.get(status.state, "UNAVAILABLE"),
            "reason": "" if RULES[status.state].can_answer else status.client_message,
        }
        for status, name in manager.visible()
        if RULES[status.state].can_answer or not only_ready
    ]


def _declared(specs: Sequence[Mapping[str, Any]]) -> Sequence[TensorSpec]:  # Any: JSON values
    return [TensorSpec(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in specs]


def _configured(spec: TensorSpec) -> Json:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": spec.shape}


def statistics(status: ModelStatus, name: str) -> Statistics:
    """Return the statistics of one model."""
    return {"model_stats": [_statistics(status, name)]}


def _statistics(status: ModelStatus, name: str) -> Json:
    totals = status.requests.totals
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


def all_statistics(manager: ModelManager) -> Statistics:
    """Return the statistics of each model that the caller may use, under the first name visible to the caller."""
    first: dict[str, tuple[ModelStatus, str]] = {}
    for status, name in manager.visible():
        first.setdefault(status.config.name, (status, name))
    return {"model_stats": [_statistics(status, name) for status, name in first.values()]}
