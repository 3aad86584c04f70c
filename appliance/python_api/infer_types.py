"""Tensor requests and responses for models written in Python, under the names of KServe's classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from appliance.core.errors import RequestError
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, Parameters, RequestedOutput, Tensor

if TYPE_CHECKING:
    import numpy as np

# numpy's dtypes, little-endian, as the protocol's bytes are.
_DTYPES: Mapping[str, str] = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}

# numpy's kinds of objects, bytes and texts.
_TEXT_KINDS = frozenset("OSU")


class _NamedTensor:
    """A tensor of a request or of a response."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        datatype: str,
        data: Sequence[Any] | bytes = (),  # Any: elements, or lists of them
        parameters: Parameters | None = None,
    ) -> None:
        """`data` are the elements in row-major order, nested lists of the shape, or the protocol's bytes; they may be
        set later by `set_data_from_numpy`.

        Raises:
            ValueError: they do not fit the datatype and the shape.
        """
        self.name = name
        self.datatype = datatype
        self.shape = list(shape)
        self.parameters = dict(parameters or {})
        self._tensor: Tensor | None = None
        with _value_errors():
            if isinstance(data, bytes):
                self._tensor = Tensor.of_raw(name, datatype, self.shape, data)
            elif data:
                self._tensor = Tensor.of_nested(name, datatype, self.shape, list(data))

    @classmethod
    def from_numpy(cls, name: str, array: np.ndarray[Any, Any], datatype: str | None = None) -> Self:
        """Return an array as a tensor; a `datatype` of None is the array's own.

        Raises:
            TypeError: the protocol has no datatype for such an array.
            ValueError: its elements do not fit the datatype.
        """
        with _value_errors():
            return cls.of(_from_array(name, array, datatype))

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Return a tensor of the protocol as one of this class."""
        named = cls(tensor.name, tensor.shape, tensor.datatype, parameters=tensor.parameters)
        named._tensor = tensor
        return named

    @property
    def tensor(self) -> Tensor:
        """The tensor of the protocol.

        Raises:
            ValueError: it has a shape with elements, and no data.
        """
        if self._tensor is None:
            with _value_errors():
                self._tensor = Tensor.of_values(self.name, self.datatype, self.shape, ())
        return replace(self._tensor, parameters=self.parameters)

    @property
    def data(self) -> list[Any]:  # Any: elements
        """The elements in row-major order; those of BYTES are bytes."""
        return self.tensor.values()

    def as_numpy(self) -> np.ndarray[Any, Any]:
        """Return the elements in the tensor's shape, read-only if the array shares their bytes.

        BYTES become an array of objects, each of them bytes; BF16, which numpy lacks, becomes float32.
        """
        import numpy as np

        tensor = self.tensor
        if tensor.datatype in _DTYPES:
            return np.frombuffer(tensor.raw, _DTYPES[tensor.datatype]).reshape(tensor.shape)
        flat: np.ndarray[Any, Any] = np.empty(len(self.data), np.float32 if tensor.datatype == "BF16" else np.object_)
        flat[:] = self.data
        return flat.reshape(tensor.shape)

    def as_string(self) -> list[str]:
        """Return the elements of BYTES as texts.

        Raises:
            RequestError: they are not texts.
        """
        return self.tensor.texts()

    def set_data_from_numpy(self, array: np.ndarray[Any, Any], binary_data: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002, RUF100 - KServe's; the client chooses the encoding
        """Set the elements and the shape to those of an array."""
        with _value_errors():
            self._tensor = _from_array(self.name, array, self.datatype)
        self.shape = list(array.shape)


@contextmanager
def _value_errors() -> Iterator[None]:
    """Turn request errors into `ValueError`: what a program puts in a tensor is not the client's fault."""
    try:
        yield
    except RequestError as error:
        raise ValueError(str(error)) from error


def _from_array(name: str, array: np.ndarray[Any, Any], datatype: str | None = None) -> Tensor:
    import numpy as np

    if array.dtype.kind in _TEXT_KINDS:
        texts = [bytes(each) if isinstance(each, bytes) else str(each) for each in array.ravel()]
        return Tensor.of_values(name, datatype or "BYTES", array.shape, texts)
    found = datatype or next((each for each, dtype in _DTYPES.items() if array.dtype.newbyteorder("<") == dtype), None)
    if found is None:
        raise TypeError(f"{name}: there is no datatype for an array of {array.dtype}; give it another with astype")
    if found not in _DTYPES:
        return Tensor.of_values(name, found, array.shape, array.ravel().tolist())
    return Tensor.of_raw(name, found, array.shape, np.ascontiguousarray(array, _DTYPES[found]).tobytes())


class InferInput(_NamedTensor):
    """A tensor of a request."""


class InferOutput(_NamedTensor):
    """A tensor of a response."""


@dataclass
class InferRequest:
    """Tensors for a model."""

    model_name: str
    inputs: list[InferInput]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    request_outputs: Sequence[RequestedOutput] = ()
    """The outputs that the client requests; empty means all."""

    @classmethod
    def of(cls, model_name: str, request: InferenceRequest) -> InferRequest:
        """Return a request of the protocol as one of this class."""
        inputs = [InferInput.of(tensor) for tensor in request.inputs]
        return cls(model_name, inputs, request.id, request.parameters, request.outputs)

    def get_input_by_name(self, name: str) -> InferInput | None:
        """Return the input of this name, or None."""
        return next((each for each in self.inputs if each.name == name), None)


class InferResponse:
    """The tensors that a model returns."""

    def __init__(
        self,
        response_id: str | None,
        model_name: str,
        infer_outputs: Sequence[InferOutput],
        model_version: str | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self.id = response_id
        self.model_name = model_name
        self.outputs = list(infer_outputs)
        self.model_version = model_version
        self.parameters = dict(parameters or {})

    @property
    def message(self) -> InferenceResponse:
        """The response of the protocol."""
        tensors = [output.tensor for output in self.outputs]
        return InferenceResponse(self.model_name, self.model_version, tensors, self.id, self.parameters)

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """Return the output of this name, or None."""
        return next((each for each in self.outputs if each.name == name), None)
