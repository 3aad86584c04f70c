"""Requests and answers in tensors as models written in Python have them; their names are those of KServe's classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from appliance.core.errors import RequestError
from appliance.python_api.numpy_tensors import as_array, of_array
from appliance.tensors import InferenceRequest, InferenceResponse, RequestedOutput, Tensor

if TYPE_CHECKING:
    import numpy as np

Parameters = Mapping[str, Any]  # Any: JSON values


class _Named:
    """A tensor of a request or of an answer."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        datatype: str,
        data: Sequence[Any] | bytes = (),  # Any: elements, or lists of them
        parameters: Parameters | None = None,
    ) -> None:
        """`data` are the elements in one row, or lists as deep as the shape, or the protocol's bytes; they may be set
        later by `set_data_from_numpy`.

        Raises:
            ValueError: they are not what the datatype and the shape say.
        """
        self.name = name
        self.datatype = datatype
        self.shape = list(shape)
        self.parameters = dict(parameters or {})
        self._tensor: Tensor | None = None
        with _blamed_on_the_model():
            if isinstance(data, bytes):
                self._tensor = Tensor.of_raw(name, datatype, self.shape, data)
            elif data:
                self._tensor = Tensor.of_nested(name, datatype, self.shape, list(data))

    @classmethod
    def from_numpy(cls, name: str, array: np.ndarray[Any, Any], datatype: str | None = None) -> Self:
        """An array as a tensor; a `datatype` of None is the array's own.

        Raises:
            TypeError: the protocol has no datatype for such an array.
            ValueError: its elements are none of the datatype's.
        """
        with _blamed_on_the_model():
            return cls.of(of_array(name, array, datatype))

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """A tensor that came over the wire."""
        made = cls(tensor.name, tensor.shape, tensor.datatype, parameters=tensor.parameters)
        made._tensor = tensor
        return made

    @property
    def tensor(self) -> Tensor:
        """The tensor that goes over the wire.

        Raises:
            ValueError: it has elements by its shape, and no data.
        """
        if self._tensor is None:
            with _blamed_on_the_model():
                self._tensor = Tensor.of_values(self.name, self.datatype, self.shape, ())
        return replace(self._tensor, parameters=self.parameters)

    @property
    def data(self) -> list[Any]:  # Any: elements
        """The elements in one row; those of BYTES are bytes."""
        return self.tensor.values()

    def as_numpy(self) -> np.ndarray[Any, Any]:
        """The elements as an array, read-only where it shares their bytes."""
        return as_array(self.tensor)

    def as_string(self) -> list[str]:
        """The elements of BYTES as texts.

        Raises:
            RequestError: they are none.
        """
        return self.tensor.texts()

    def set_data_from_numpy(self, array: np.ndarray[Any, Any], binary_data: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002, RUF100 - KServe's; the client says how it wants them
        """Take the elements and the shape of an array."""
        with _blamed_on_the_model():
            self._tensor = of_array(self.name, array, self.datatype)
        self.shape = list(array.shape)


@contextmanager
def _blamed_on_the_model() -> Iterator[None]:
    """What a program puts in a tensor is not its client's fault."""
    try:
        yield
    except RequestError as error:
        raise ValueError(str(error)) from error


class InferInput(_Named):
    """A tensor of a request."""


class InferOutput(_Named):
    """A tensor of an answer."""


@dataclass
class InferRequest:
    """Tensors for a model."""

    model_name: str
    inputs: list[InferInput]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    request_outputs: Sequence[RequestedOutput] = ()
    """The outputs that the client wants; none are all."""

    @classmethod
    def of(cls, model_name: str, request: InferenceRequest) -> InferRequest:
        """A request that came over the wire."""
        inputs = [InferInput.of(tensor) for tensor in request.inputs]
        return cls(model_name, inputs, request.id, request.parameters, request.outputs)

    def get_input_by_name(self, name: str) -> InferInput | None:
        """The input of this name, or None."""
        return next((each for each in self.inputs if each.name == name), None)


class InferResponse:
    """The tensors that a model answers."""

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
        """The answer that goes over the wire."""
        tensors = [output.tensor for output in self.outputs]
        return InferenceResponse(self.model_name, self.model_version, tensors, self.id, self.parameters)

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """The output of this name, or None."""
        return next((each for each in self.outputs if each.name == name), None)
