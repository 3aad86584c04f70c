"""What is asked of a model in tensors, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.core.errors import RequestError
from appliance.tensors.tensor import Tensor

Parameters = Mapping[str, Any]  # Any: JSON values
"""
What a request, an answer or a tensor says beside its tensors.
"""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output the client wants."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Tensors for a model; no `outputs` are all there are."""

    inputs: Sequence[Tensor]
    id: str | None = None
    outputs: Sequence[RequestedOutput] = ()
    parameters: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.inputs]
        if len(set(names)) < len(names):
            raise RequestError("Two inputs have the same name; each must have its own")


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """The model's tensors."""

    model_name: str
    model_version: str | None
    outputs: Sequence[Tensor]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)

    def chosen(self, wanted: Sequence[RequestedOutput]) -> Sequence[Tensor]:
        """The outputs the client wants, in its order; all where it wants none in particular.

        Raises:
            RequestError: there is no such output.
        """
        named = {tensor.name: tensor for tensor in self.outputs}
        missing = [output.name for output in wanted if output.name not in named]
        if missing:
            raise RequestError(f"There is no output {missing[0]!r}; the outputs are: {', '.join(named)}")
        return [named[output.name] for output in wanted] if wanted else self.outputs
