"""Tensors as models written in Python see them.

The signatures are those of KServe's `kserve.protocol.infer_type`, https://github.com/kserve/kserve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from appliance.core.errors import RequestError
from appliance.core.openai_types import Json
from appliance.tensors.arrays import array_of_objects, is_array, to_array, to_tensor
from appliance.tensors.codec import BINARY_SIZE
from appliance.tensors.tensor import Parameters, Tensor, flatten

if TYPE_CHECKING:
    import numpy as np

Data = Any
"""Elements in row-major order, nested lists of them, a numpy array, or the protocol's bytes; None is not set yet."""


@contextmanager
def value_errors() -> Iterator[None]:
    """Turn request errors into `ValueError`: what a program puts in a tensor is not the client's fault."""
    try:
        yield
    except RequestError as error:
        raise ValueError(str(error)) from error


class NamedTensor:
    """A tensor of a request or of a response."""

    def __init__(
        self, name: str, shape: Sequence[int], datatype: str, data: Data = None, parameters: Parameters | None = None
    ) -> None:
        """`data` may be set later, also by `set_data_from_numpy`.

        Raises:
            ValueError: the data does not fit the datatype and the shape.
        """
        self.name = name
        self.shape = [int(size) for size in shape]
        self.datatype = datatype.upper()
        self.parameters = parameters
        self._raw: bytes | None = None
        self._data: Data = None
        if isinstance(data, bytes):
            self._raw = data
        else:
            self._data = data
        if data is not None and (is_array(data) or len(data)):
            self.tensor  # noqa: B018 - raises if the data does not fit

    @classmethod
    def from_numpy(cls, name: str, array: np.ndarray[Any, Any], datatype: str | None = None) -> Self:
        """Return an array as a tensor; a `datatype` of None is the array's own.

        Raises:
            TypeError: the protocol has no datatype for such an array.
            ValueError: its elements do not fit the datatype.
        """
        with value_errors():
            return cls.of(to_tensor(name, array, datatype))

    @classmethod
    def of(cls, tensor: Tensor, *, as_texts: bool = False) -> Self:
        """Return a tensor of the protocol as one of this class; `as_texts` makes BYTES that are UTF-8 texts."""
        named = cls(tensor.name, tensor.shape, tensor.datatype, parameters=dict(tensor.parameters))
        named._raw = tensor.raw
        if as_texts and tensor.datatype == "BYTES":
            # Others stay bytes, such as those of an image.
            with suppress(RequestError):
                named.data = tensor.texts()
        return named

    @property
    def tensor(self) -> Tensor:
        """The tensor of the protocol.

        Raises:
            ValueError: the data does not fit the datatype and the shape, or there is none.
        """
        with value_errors():
            return replace(self._bare_tensor(), parameters=self.parameters or {})

    def _bare_tensor(self) -> Tensor:
        if self._raw is not None:
            return Tensor.of_raw(self.name, self.datatype, self.shape, self._raw)
        if is_array(self._data):
            return to_tensor(self.name, self._data, self.datatype, self.shape)
        _, values = flatten(self.name, list(self._data if self._data is not None else ()))
        return Tensor.of_values(self.name, self.datatype, self.shape, values)

    @property
    def data(self) -> Data:
        """The elements as they were set; those of encoded bytes as a flat list in row-major order."""
        if self._raw is not None:
            self.data = self.tensor.values()
        return self._data

    @data.setter
    def data(self, data: Data) -> None:
        self._raw, self._data = None, data

    def as_numpy(self) -> np.ndarray[Any, Any]:
        """Return the elements in the tensor's shape, as an array of their own.

        BYTES become an array of objects, bytes or texts; BF16, which numpy lacks, becomes float32.

        Raises:
            ValueError: the data does not fit the datatype and the shape.
        """
        if self.datatype != "BYTES" or self._raw is not None:
            return to_array(self.tensor).copy()
        if is_array(self._data):
            return array_of_objects(self._data.ravel().tolist(), self.shape)
        with value_errors():
            return array_of_objects(flatten(self.name, list(self._data or ()))[1], self.shape)

    def as_string(self) -> list[str]:
        """Return the elements of BYTES as a flat list of texts.

        Raises:
            RequestError: they are not texts.
        """
        return self.tensor.texts()

    def set_data_from_numpy(self, input_tensor: np.ndarray[Any, Any], binary_data: bool = True) -> None:  # noqa: FBT001, FBT002, RUF100 - KServe's
        """Set the elements and the shape to those of an array; `binary_data` is how `to_rest` and `to_grpc` encode it.

        Raises:
            ValueError: its elements do not fit the datatype.
        """
        with value_errors():
            tensor = to_tensor(self.name, input_tensor, self.datatype)
        self.shape = list(input_tensor.shape)
        if binary_data:
            self._raw, self._data = tensor.raw, None
        else:
            with value_errors():
                self.data = list(tensor.as_json())

    def to_dict(self) -> Json:
        """Return all fields as a dict."""
        return {
            "name": self.name,
            "shape": self.shape,
            "datatype": self.datatype,
            "data": self.data,
            "parameters": self.parameters,
        }

    def set_raw(self, raw: bytes) -> None:
        """Set the elements to the protocol's bytes."""
        self._raw, self._data = raw, None

    @property
    def is_binary(self) -> bool:
        """Whether the elements are encoded bytes."""
        return self._raw is not None

    def body(self, *, is_binary: bool) -> tuple[Json, bytes]:
        """Return the JSON of the tensor, and the bytes after it.

        Raises:
            ValueError: the data does not fit the datatype and the shape, or there is none.
        """
        tensor = self.tensor
        parameters = {name: value for name, value in tensor.parameters.items() if name != BINARY_SIZE}
        body: Json = {"name": self.name, "shape": self.shape, "datatype": self.datatype}
        if is_binary:
            return {**body, "parameters": {**parameters, BINARY_SIZE: len(tensor.raw)}}, tensor.raw
        with value_errors():
            data = list(tensor.as_json()) if self.is_binary or is_array(self._data) else _as_json(self._data)
        return {**body, **({"parameters": parameters} if parameters else {}), "data": data}, b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedTensor) and type(other) is type(self) and self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        raw = None if self._raw is None and self._data is None else self.tensor.raw
        return self.name, self.shape, self.datatype, self.parameters or {}, raw

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"{type(self).__name__}({fields})"


class InferInput(NamedTensor):
    """A tensor of a request."""


class InferOutput(NamedTensor):
    """A tensor of a response."""

    def set_data_from_numpy(self, output_tensor: np.ndarray[Any, Any], binary_data: bool = True) -> None:  # noqa: FBT001, FBT002, RUF100 - KServe's
        """Set the elements and the shape to those of an array; `binary_data` is how `to_rest` and `to_grpc` encode it.

        Raises:
            ValueError: its elements do not fit the datatype.
        """
        super().set_data_from_numpy(output_tensor, binary_data)


def _as_json(data: Data) -> Data:
    """Return elements as JSON has them: bytes as texts."""
    if isinstance(data, list | tuple):
        return [_as_json(each) for each in data]
    return data.decode() if isinstance(data, bytes) else data
