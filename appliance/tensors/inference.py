"""Inference requests and responses made of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.core.errors import RequestError
from appliance.tensors.tensor import Tensor

Parameters = Mapping[str, Any]  # Any: JSON values
"""Parameters of a request, a response, an output or a tensor."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client requests."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Input tensors for a model; empty `outputs` request all outputs."""

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
    """Output tensors of a model."""

    model_name: str
    model_version: str | None
    outputs: Sequence[Tensor]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)

    def select(self, requested: Sequence[RequestedOutput]) -> Sequence[Tensor]:
        """Return the requested outputs in the order of the request; all outputs if none is requested.

        Raises:
            RequestError: a requested output does not exist.
        """
        by_name = {tensor.name: tensor for tensor in self.outputs}
        missing = [output.name for output in requested if output.name not in by_name]
        if missing:
            raise RequestError(f"There is no output {missing[0]!r}; the outputs are: {', '.join(by_name)}")
        return [by_name[output.name] for output in requested] if requested else self.outputs
