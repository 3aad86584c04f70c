"""The tensor signature of each operation: its input texts and output tensors.

Models speak the OpenAI protocol; each signature translates one of its operations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.api.oip import translations
from appliance.api.oip.inputs import TensorSpec, TextInput, TextInputs, texts
from appliance.auth import Authorizer
from appliance.core import openai_types
from appliance.core.errors import RequestError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.tensors import Tensor

Facts = Mapping[str, Any]  # Any: JSON values
"""The description of a model (`Model.describe`)."""


@dataclass(frozen=True, slots=True)
class OperationSignature:
    """One operation as tensors.

    `bodies` makes the bodies of OpenAI requests from the inputs, `response` is the type of their responses, `tensors`
    makes the outputs from both. `outputs` describes them, with shapes as far as they are known from the model's facts.
    """

    operation: Operation
    inputs: tuple[str, ...]
    outputs: Callable[[Facts], Sequence[TensorSpec]]
    bodies: Callable[[TextInputs], Sequence[Mapping[str, Any]]]  # Any: JSON values
    response: type
    tensors: Callable[[TextInputs, Sequence[Any]], Sequence[Tensor]]  # Any: of the type `response`

    def specs(self) -> Sequence[TensorSpec]:
        """Return the required inputs."""
        return [TensorSpec(name, "BYTES", (1,) if name == "query" else (-1,)) for name in self.inputs]

    def takes(self, names: Collection[str], requested: Collection[str]) -> bool:
        """Whether the inputs are sufficient and the outputs exist."""
        return set(self.inputs) <= set(names) and set(requested) <= {spec.name for spec in self.outputs({})}


SIGNATURES: Sequence[OperationSignature] = (
    OperationSignature(
        Operation.COMPLETION,
        ("text_input",),
        texts("text_output"),
        translations.completion_bodies,
        openai_types.Completion,
        translations.completion_tensors,
    ),
    OperationSignature(
        Operation.CHAT_COMPLETION,
        ("text_input",),
        texts("text_output"),
        translations.chat_bodies,
        openai_types.ChatCompletion,
        translations.chat_tensors,
    ),
    OperationSignature(
        Operation.EMBEDDING,
        ("text_input",),
        translations.embedding_specs,
        translations.embedding_bodies,
        openai_types.Embeddings,
        translations.embedding_tensors,
    ),
    OperationSignature(
        Operation.RERANK,
        ("query", "documents"),
        translations.ranking_specs,
        translations.ranking_bodies,
        openai_types.Rerank,
        translations.ranking_tensors,
    ),
    OperationSignature(
        Operation.CLASSIFICATION,
        ("text_input",),
        translations.class_specs,
        translations.class_bodies,
        openai_types.Classifications,
        translations.class_tensors,
    ),
)
"""In order of preference, for a model that supports several of them."""


def default_signature(operations: Collection[Operation], access: Authorizer | None = None) -> OperationSignature:
    """Return the signature of a model with these operations, if inputs and outputs do not decide it.

    With `access`, operations that the current caller may use come first.

    Raises:
        UnsupportedOperationError: none of the operations has a signature.
    """
    offered = _offered(operations)
    return next((each for each in offered if access is not None and access.may_request(each.operation)), offered[0])


def choose_signature(
    operations: Collection[Operation],
    text_inputs: Mapping[str, TextInput],
    requested: Collection[str],
    access: Authorizer,
) -> OperationSignature:
    """Return the signature that fits the inputs and the requested outputs.

    Raises:
        RequestError: none fits.
        ForbiddenError: the current caller may use none of the operations.
        UnsupportedOperationError: none of the operations has a signature.
    """
    offered = _offered(operations)
    allowed = [signature for signature in offered if access.may_request(signature.operation)]
    if not allowed:
        access.require_operation(offered[0].operation)
    # Operations that the caller may not use come last; dispatch refuses them by name.
    for signature in (*allowed, *offered):
        if signature.takes(text_inputs, requested):
            return signature
    # Chat and completion have the same inputs and outputs.
    choices = "; or ".join(
        dict.fromkeys(
            f"{', '.join(signature.inputs)} for {', '.join(spec.name for spec in signature.outputs({}))}"
            for signature in allowed
        )
    )
    asked = f", and its outputs {', '.join(requested)}" if requested else ""
    raise RequestError(
        f"The request's inputs are {', '.join(text_inputs) or 'none'}{asked}; the model takes {choices}", param="inputs"
    )


def _offered(operations: Collection[Operation]) -> Sequence[OperationSignature]:
    offered = [signature for signature in SIGNATURES if signature.operation in operations]
    if not offered:
        can = ", ".join(sorted(operations))
        raise UnsupportedOperationError(f"The model has nothing to do with tensors; it supports: {can}")
    return offered
