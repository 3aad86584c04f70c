"""What tensors mean to each operation: which texts it takes, which tensors it gives.

The models speak OpenAI's protocol inside; each meaning translates one of its operations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.api.oip import pooling_outputs, text_generation
from appliance.api.oip.inputs import Column, Columns, Spec, texts
from appliance.auth import Authorizer
from appliance.core.errors import RequestError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.tensors import Tensor

Facts = Mapping[str, Any]  # Any: JSON values
"""
What a model says of itself.
"""


@dataclass(frozen=True, slots=True)
class OperationSignature:
    """One operation in tensors.

    `ask` makes the bodies of the calls out of the columns, `reply` is the type of their answers, and `read` makes the
    outputs of both. `outputs` names them, and their shapes as far as the model's facts say.
    """

    operation: Operation
    inputs: tuple[str, ...]
    outputs: Callable[[Facts], Sequence[Spec]]
    ask: Callable[[Columns], Sequence[Mapping[str, Any]]]  # Any: JSON values
    reply: type
    read: Callable[[Columns, Sequence[Any]], Sequence[Tensor]]  # Any: of the type `reply`

    def specs(self) -> Sequence[Spec]:
        """The inputs it needs."""
        return [Spec(name, "BYTES", (1,) if name == "query" else (-1,)) for name in self.inputs]

    def takes(self, names: Collection[str], wanted: Collection[str]) -> bool:
        """Whether these inputs are all it needs, and it has these outputs."""
        return set(self.inputs) <= set(names) and set(wanted) <= {spec.name for spec in self.outputs({})}


MEANINGS: Sequence[OperationSignature] = (
    OperationSignature(
        Operation.COMPLETION,
        ("text_input",),
        texts("text_output"),
        text_generation.ask_completion,
        text_generation.Completion,
        text_generation.read_completion,
    ),
    OperationSignature(
        Operation.CHAT_COMPLETION,
        ("text_input",),
        texts("text_output"),
        text_generation.ask_chats,
        text_generation.ChatCompletion,
        text_generation.read_chats,
    ),
    OperationSignature(
        Operation.EMBEDDING,
        ("text_input",),
        pooling_outputs.embedding_specs,
        pooling_outputs.ask_embeddings,
        pooling_outputs.Embeddings,
        pooling_outputs.read_embeddings,
    ),
    OperationSignature(
        Operation.RERANK,
        ("query", "documents"),
        pooling_outputs.ranking_specs,
        pooling_outputs.ask_ranking,
        pooling_outputs.Ranking,
        pooling_outputs.read_ranking,
    ),
    OperationSignature(
        Operation.CLASSIFICATION,
        ("text_input",),
        pooling_outputs.class_specs,
        pooling_outputs.ask_classes,
        pooling_outputs.Classes,
        pooling_outputs.read_classes,
    ),
)
"""
In the order in which a model that has several of them is taken to be meant.
"""


def usual(operations: Collection[Operation], access: Authorizer | None = None) -> OperationSignature:
    """What tensors mean to a model with these operations, where they do not say it themselves.

    With `access`, what the current caller may ask for comes first.

    Raises:
        UnsupportedOperationError: none of its operations has a meaning in tensors.
    """
    offered = _offered(operations)
    return next((each for each in offered if access is not None and access.may_ask(each.operation)), offered[0])


def choose(
    operations: Collection[Operation], columns: Mapping[str, Column], wanted: Collection[str], access: Authorizer
) -> OperationSignature:
    """What these inputs, and the outputs that are wanted, mean to a model with these operations.

    Raises:
        RequestError: nothing.
        ForbiddenError: the current caller may ask for none of them.
        UnsupportedOperationError: none of its operations has a meaning in tensors.
    """
    offered = _offered(operations)
    allowed = [meaning for meaning in offered if access.may_ask(meaning.operation)]
    if not allowed:
        access.require_operation(offered[0].operation)
    # What the caller may not ask for is tried last, and refused by name when it is asked.
    for meaning in (*allowed, *offered):
        if meaning.takes(columns, wanted):
            return meaning
    # Chat and completion take and give the same.
    choices = "; or ".join(
        dict.fromkeys(
            f"{', '.join(meaning.inputs)} for {', '.join(spec.name for spec in meaning.outputs({}))}"
            for meaning in allowed
        )
    )
    asked = f", and its outputs {', '.join(wanted)}" if wanted else ""
    raise RequestError(
        f"The request's inputs are {', '.join(columns) or 'none'}{asked}; the model takes {choices}", param="inputs"
    )


def _offered(operations: Collection[Operation]) -> Sequence[OperationSignature]:
    offered = [meaning for meaning in MEANINGS if meaning.operation in operations]
    if not offered:
        can = ", ".join(sorted(operations))
        raise UnsupportedOperationError(f"The model has nothing to do with tensors; it supports: {can}")
    return offered
