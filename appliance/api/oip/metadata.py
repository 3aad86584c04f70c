"""What the server and its models are, in the Open Inference Protocol's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from appliance.api.oip.inference import VERSION
from appliance.api.oip.inputs import Spec
from appliance.api.oip.signatures import usual
from appliance.core.errors import UnsupportedOperationError
from appliance.core.model import Operation
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES, State

SERVER = "appliance"

EXTENSIONS = ("binary_tensor_data", "generate", "model_configuration", "model_repository", "statistics")

# What a listing says of the repository's words, for each state of ours.
_STATES: Mapping[State, str] = {
    State.READY: "READY",
    State.PENDING: "LOADING",
    State.FETCHING: "LOADING",
    State.LOADING: "LOADING",
    State.PROVING: "LOADING",
    State.RESTARTING: "LOADING",
    State.DRAINING: "UNLOADING",
}


def server_version() -> str:
    """The version of this program."""
    return version("appliance")


def platform(entry: ModelStatus) -> str:
    """What computes the model, and its class."""
    return f"{entry.config.backend}_{getattr(entry.config, 'class_', 'model')}"


def tensors(entry: ModelStatus) -> tuple[Sequence[Spec], Sequence[Spec]]:
    """The inputs and the outputs of a model; both are empty where tensors mean nothing to it."""
    facts, operations = entry.model.describe(), entry.model.operations
    if Operation.INFERENCE in operations:
        return _declared(facts.get("inputs", ())), _declared(facts.get("outputs", ()))
    try:
        meaning = usual(operations)
    except UnsupportedOperationError:
        return (), ()
    return meaning.specs(), meaning.outputs(facts)


def describe(entry: ModelStatus, name: str) -> dict[str, Any]:  # Any: JSON values
    """The metadata of a model; its facts and the digests of its bytes are among the parameters."""
    inputs, outputs = tensors(entry)
    facts = {key: value for key, value in entry.model.describe().items() if key not in {"inputs", "outputs"}}
    digests = {"digest": entry.digests["model"]} if "model" in entry.digests else {}
    return {
        "name": name,
        "versions": [VERSION],
        "platform": platform(entry),
        "inputs": [asdict(spec) for spec in inputs],
        "outputs": [asdict(spec) for spec in outputs],
        "parameters": {**facts, **digests},
    }


def configuration(entry: ModelStatus, name: str) -> dict[str, Any]:  # Any: JSON values
    """The same as Triton's clients read it before they ask.

    Source: https://github.com/triton-inference-server/server, protocol/extension_model_configuration.md
    """
    inputs, outputs = tensors(entry)
    return {
        "name": name,
        "platform": platform(entry),
        "backend": platform(entry).split("_")[0],
        "max_batch_size": 0,
        "input": [_configured(spec) for spec in inputs],
        "output": [_configured(spec) for spec in outputs],
    }


def listed(manager: ModelManager, *, only_ready: bool = False) -> list[dict[str, str]]:
    """Every name of every model as a repository lists it, with its state."""
    return [
        {
            "name": name,
            "version": VERSION,
            "state": _STATES.get(entry.state, "UNAVAILABLE"),
            "reason": "" if RULES[entry.state].can_answer else entry.client_message,
        }
        for entry, name in manager.visible()
        if RULES[entry.state].can_answer or not only_ready
    ]


def _declared(specs: Sequence[Mapping[str, Any]]) -> Sequence[Spec]:  # Any: JSON values
    return [Spec(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in specs]


def _configured(spec: Spec) -> dict[str, Any]:  # Any: JSON values
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": spec.shape}
