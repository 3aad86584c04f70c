"""Metadata of the server and its models, and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TypedDict

from appliance.api.oip.inference import VERSION
from appliance.api.oip.signatures import TensorSpec, default_signature
from appliance.core.errors import UnsupportedOperationError
from appliance.core.model import Operation
from appliance.core.openai_types import Json
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus


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


def server_version() -> str:
    """Return the version of the appliance."""
    return version("appliance")


def describe_server() -> ServerMetadata:
    """Return the metadata of the server."""
    extensions = ("binary_tensor_data", "generate", "model_configuration", "model_repository", "statistics")
    return {"name": "appliance", "version": server_version(), "extensions": extensions}


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
