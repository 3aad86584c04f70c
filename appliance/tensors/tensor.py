"""Tensors, and inference requests and responses made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self, TypeVar

from appliance.core.errors import RequestError
from appliance.tensors.datatype import InputValue, Value, datatype

Parameters = Mapping[str, Any]  # Any: JSON values
"""Parameters of a request, a response, an output or a tensor."""

Input = TypeVar("Input")
Result = TypeVar("Result")

# Far more than models use; bounds the work of multiplying them.
_MAX_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor whose `raw` bytes have as many elements as `shape` says, row-major.

    Create it with `of_raw`, `of_values` or `of_nested`, which raise a `RequestError` if the data does not match the
    datatype and the shape.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    parameters: Parameters = field(default_factory=dict)

    @classmethod
    def of_raw(cls, name: str, type_name: str, shape: Sequence[int], raw: bytes) -> Self:
        """Create a tensor from encoded bytes."""
        kind, count = datatype(type_name), _count(name, shape)
        if kind.size is None:
            found = len(_convert(name, kind.unpack, raw))
            if found != count:
                raise _miscounted(name, shape, count, f"{found} elements")
        elif len(raw) != count * kind.size:
            raise _miscounted(name, shape, count, f"{len(raw)} bytes and not {count * kind.size}, as {type_name} has")
        return cls(name, type_name, tuple(shape), raw)

    @classmethod
    def of_values(cls, name: str, type_name: str, shape: Sequence[int], values: Sequence[InputValue]) -> Self:
        """Create a tensor from a flat list of values."""
        kind, count = datatype(type_name), _count(name, shape)
        if len(values) != count:
            raise _miscounted(name, shape, count, f"{len(values)}")
        return cls(name, type_name, tuple(shape), _convert(name, kind.pack, values))

    @classmethod
    def of_nested(cls, name: str, type_name: str, shape: Sequence[int], data: object) -> Self:
        """Create a tensor from JSON: a flat list, or nested lists of the shape."""
        _count(name, shape)
        dimensions, values = flatten(name, data)
        if len(dimensions) > 1 and dimensions != tuple(shape):
            raise RequestError(f"The tensor {name!r} has data of shape {list(dimensions)}, and says {list(shape)}")
        return cls.of_values(name, type_name, shape, values)

    def values(self) -> list[Value]:
        """Return the elements as a flat list."""
        return datatype(self.datatype).unpack(self.raw)

    def texts(self) -> list[str]:
        """Return the elements as strings.

        Raises:
            RequestError: they are not UTF-8 strings.
        """
        if self.datatype != "BYTES":
            raise RequestError(f"The tensor {self.name!r} is {self.datatype}; it must be BYTES, a text in each element")
        try:
            return [value.decode() for value in self.values() if isinstance(value, bytes)]
        except UnicodeDecodeError as error:
            raise RequestError(f"The tensor {self.name!r} has an element that is no text in UTF-8") from error

    def as_json(self) -> Sequence[Value | str]:
        """Return the elements as JSON has them; those of BYTES must be UTF-8 strings, or a `RequestError` is raised."""
        return self.texts() if self.datatype == "BYTES" else self.values()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Metadata of a tensor; -1 in the shape is a size that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def smallest_tensor(spec: TensorSpec) -> Tensor:
    """Return zeros, or texts, in the smallest shape.

    Raises:
        RequestError: there is no such datatype.
    """
    shape = [1 if size < 0 else size for size in spec.shape]
    zeros: Mapping[str, InputValue] = {"BYTES": "Hello", "BOOL": False}
    value = zeros.get(spec.datatype, 0)
    return Tensor.of_values(spec.name, spec.datatype, shape, [value] * _count(spec.name, shape))


def _count(name: str, shape: Sequence[int]) -> int:
    if len(shape) > _MAX_DIMENSIONS:
        raise RequestError(f"The tensor {name!r} has {len(shape)} dimensions; {_MAX_DIMENSIONS} are the most")
    if any(dimension < 0 or dimension >= 1 << 64 for dimension in shape):
        raise RequestError(f"The tensor {name!r} has a dimension that is negative, or has more than 64 bits")
    return math.prod(shape)


def _miscounted(name: str, shape: Sequence[int], count: int, found: str) -> RequestError:
    return RequestError(f"The tensor {name!r} of shape {list(shape)} has {count} elements, and its data has {found}")


def _convert(name: str, convert: Callable[[Input], Result], data: Input) -> Result:
    try:
        return convert(data)
    except ValueError as error:
        raise RequestError(f"The tensor {name!r} cannot be read: {error}") from error


def flatten(name: str, data: object) -> tuple[tuple[int, ...], list[Any]]:  # Any: JSON values
    """Return the sizes of nested lists, and their elements as a flat list."""
    if not isinstance(data, list):
        raise RequestError(f"The data of tensor {name!r} must be a list of its elements")
    dimensions = [len(data)]
    while list in set(map(type, data)):
        widths = {len(each) if isinstance(each, list) else None for each in data}
        if len(widths) > 1 or len(dimensions) > _MAX_DIMENSIONS:
            raise RequestError(f"The data of tensor {name!r} has lists of different lengths side by side")
        dimensions.append(len(data[0]))
        data = list(chain.from_iterable(data))
    return tuple(dimensions), data


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
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers by lower-case name that the model adds to those of the protocol."""

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
