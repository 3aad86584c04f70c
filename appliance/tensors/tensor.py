"""One tensor: a name, a datatype, a shape, and bytes that agree with both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self, TypeVar

from appliance.core.errors import RequestError
from appliance.tensors.datatype import Datatype, Value, Written, datatype

Before = TypeVar("Before")
After = TypeVar("After")

# Far more than anyone computes with; a product of many more would be work by itself.
_MOST_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """
    A tensor whose `raw` bytes hold as many elements as its `shape` says; made by `of_raw`, `of_values` or `of_nested`.

    `shape` counts elements in each dimension, the last one lying side by side.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    parameters: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values

    @classmethod
    def of_raw(cls, name: str, type_name: str, shape: Sequence[int], raw: bytes) -> Self:
        """A tensor of bytes that came over the wire.

        Raises:
            RequestError: they are not what the datatype and the shape say.
        """
        kind, count = datatype(type_name), _count(name, shape)
        if kind.size is None:
            found = len(_checked(name, kind.unpack, raw))
            if found != count:
                raise _miscounted(name, shape, count, f"{found} elements")
        elif len(raw) != count * kind.size:
            raise _miscounted(name, shape, count, f"{len(raw)} bytes and not {count * kind.size}, as {type_name} has")
        return cls(name, type_name, tuple(shape), raw)

    @classmethod
    def of_values(cls, name: str, type_name: str, shape: Sequence[int], values: Sequence[Written]) -> Self:
        """A tensor of values in one row; texts are taken as BYTES.

        Raises:
            RequestError: they are not what the datatype and the shape say.
        """
        kind, count = datatype(type_name), _count(name, shape)
        if len(values) != count:
            raise _miscounted(name, shape, count, f"{len(values)}")
        return cls(name, type_name, tuple(shape), _checked(name, kind.pack, values))

    @classmethod
    def of_nested(cls, name: str, type_name: str, shape: Sequence[int], data: object) -> Self:
        """A tensor of JSON: values in one row, or lists within lists as deep as the shape.

        Raises:
            RequestError: they are not what the datatype and the shape say.
        """
        _count(name, shape)
        dimensions, values = _flat(name, data)
        if len(dimensions) > 1 and dimensions != tuple(shape):
            raise RequestError(f"The tensor {name!r} has data of shape {list(dimensions)}, and says {list(shape)}")
        return cls.of_values(name, type_name, shape, values)

    @property
    def kind(self) -> Datatype:
        """Its datatype."""
        return datatype(self.datatype)

    def values(self) -> list[Value]:
        """Its elements in one row."""
        return self.kind.unpack(self.raw)

    def texts(self) -> list[str]:
        """Its elements as texts.

        Raises:
            RequestError: they are none.
        """
        if self.datatype != "BYTES":
            raise RequestError(f"The tensor {self.name!r} is {self.datatype}; it must be BYTES, a text in each element")
        try:
            return [value.decode() for value in self.values() if isinstance(value, bytes)]
        except UnicodeDecodeError as error:
            raise RequestError(f"The tensor {self.name!r} has an element that is no text in UTF-8") from error


def _count(name: str, shape: Sequence[int]) -> int:
    if len(shape) > _MOST_DIMENSIONS:
        raise RequestError(f"The tensor {name!r} has {len(shape)} dimensions; {_MOST_DIMENSIONS} are the most")
    if any(dimension < 0 or dimension >= 1 << 64 for dimension in shape):
        raise RequestError(f"The tensor {name!r} has a dimension that is negative, or has more than 64 bits")
    return math.prod(shape)


def _miscounted(name: str, shape: Sequence[int], count: int, found: str) -> RequestError:
    return RequestError(f"The tensor {name!r} of shape {list(shape)} has {count} elements, and its data has {found}")


def _checked(name: str, change: Callable[[Before], After], data: Before) -> After:
    try:
        return change(data)
    except ValueError as error:
        raise RequestError(f"The tensor {name!r} cannot be read: {error}") from error


def _flat(name: str, data: object) -> tuple[tuple[int, ...], list[Any]]:  # Any: JSON values
    """The sizes of lists within lists, and what is in the innermost, in one row."""
    if not isinstance(data, list):
        raise RequestError(f"The data of tensor {name!r} must be a list of its elements")
    dimensions = [len(data)]
    while list in set(map(type, data)):
        widths = {len(each) if isinstance(each, list) else None for each in data}
        if len(widths) > 1 or len(dimensions) > _MOST_DIMENSIONS:
            raise RequestError(f"The data of tensor {name!r} has lists of different lengths side by side")
        dimensions.append(len(data[0]))
        data = list(chain.from_iterable(data))
    return tuple(dimensions), data
