"""A tensor: name, datatype, shape, and the bytes of its elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self, TypeVar

from appliance.core.errors import RequestError
from appliance.tensors.datatype import Datatype, InputValue, Value, datatype

Input = TypeVar("Input")
Result = TypeVar("Result")

# Far more than models use; bounds the work of multiplying them.
_MAX_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor whose `raw` bytes have as many elements as `shape` says, row-major.

    Create it with `of_raw`, `of_values` or `of_nested`, which check that.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    parameters: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values

    @classmethod
    def of_raw(cls, name: str, type_name: str, shape: Sequence[int], raw: bytes) -> Self:
        """Create a tensor from encoded bytes.

        Raises:
            RequestError: the bytes do not match datatype and shape.
        """
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
        """Create a tensor from a flat list of values.

        Raises:
            RequestError: the values do not match datatype and shape.
        """
        kind, count = datatype(type_name), _count(name, shape)
        if len(values) != count:
            raise _miscounted(name, shape, count, f"{len(values)}")
        return cls(name, type_name, tuple(shape), _convert(name, kind.pack, values))

    @classmethod
    def of_nested(cls, name: str, type_name: str, shape: Sequence[int], data: object) -> Self:
        """Create a tensor from JSON: a flat list, or nested lists of the shape.

        Raises:
            RequestError: the data does not match datatype and shape.
        """
        _count(name, shape)
        dimensions, values = _flatten(name, data)
        if len(dimensions) > 1 and dimensions != tuple(shape):
            raise RequestError(f"The tensor {name!r} has data of shape {list(dimensions)}, and says {list(shape)}")
        return cls.of_values(name, type_name, shape, values)

    @property
    def kind(self) -> Datatype:
        """The datatype."""
        return datatype(self.datatype)

    def values(self) -> list[Value]:
        """Return the elements as a flat list."""
        return self.kind.unpack(self.raw)

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


def _flatten(name: str, data: object) -> tuple[tuple[int, ...], list[Any]]:  # Any: JSON values
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
