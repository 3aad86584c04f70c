"""Inference requests and responses as models written in Python see them.

The signatures are those of KServe's `kserve.protocol.infer_type`, https://github.com/kserve/kserve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import msgspec

from appliance.core.openai_types import Json
from appliance.python_api.infer_tensors import InferInput, InferOutput, NamedTensor, value_errors
from appliance.tensors.arrays import is_array
from appliance.tensors.codec import read_request, read_response
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, Parameters, RequestedOutput

if TYPE_CHECKING:
    import pandas as pd

    from appliance.tensors.grpc import inference_pb2 as pb

RestBody = tuple[Json, None] | tuple[bytes, int]
"""The JSON of a body, or a body with binary data and the number of bytes of JSON at its start."""


class InferRequest:
    """Tensors for a model."""

    def __init__(
        self,
        model_name: str,
        infer_inputs: Sequence[InferInput],
        request_id: str | None = None,
        raw_inputs: Sequence[bytes] | None = None,
        from_grpc: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        parameters: Parameters | None = None,
        request_outputs: Sequence[RequestedOutput] | None = None,
        model_version: str | None = None,
    ) -> None:
        """`raw_inputs` are the encoded elements of all inputs; no `request_outputs` request all outputs."""
        self.id = request_id
        self.model_name = model_name
        self.inputs = list(infer_inputs)
        self.parameters = parameters
        self.from_grpc = from_grpc  # type: ignore[method-assign,assignment]  # KServe has a method and an attribute
        self._is_from_grpc = from_grpc
        self.request_outputs = request_outputs
        self.model_version = model_version
        self._has_raw_inputs = bool(raw_inputs)
        _set_raw(self.inputs, raw_inputs)

    @classmethod
    def of(cls, model_name: str, request: InferenceRequest, *, from_grpc: bool = False) -> Self:
        """Return a request of the protocol as one of this class; BYTES are texts unless they come over gRPC."""
        inputs = [InferInput.of(tensor, as_texts=not from_grpc) for tensor in request.inputs]
        outputs = list(request.outputs) or None
        return cls(
            model_name,
            inputs,
            request.id,
            from_grpc=from_grpc,
            parameters=dict(request.parameters),
            request_outputs=outputs,
        )

    @classmethod
    def from_grpc(cls, request: pb.ModelInferRequest) -> Self:
        """Return the request of a gRPC message; its parameters become plain values.

        Raises:
            RequestError: it is not valid.
        """
        from appliance.tensors.grpc.converters import request_from_message

        converted = cls.of(request.model_name, request_from_message(request), from_grpc=True)
        converted.model_version = request.model_version or None
        converted._has_raw_inputs = bool(request.raw_input_contents)
        return converted

    @classmethod
    def from_bytes(cls, req_bytes: bytes, json_length: int, model_name: str) -> Self:
        """Return the request of a body with binary data.

        Raises:
            RequestError: it is not valid.
        """
        return cls.of(model_name, read_request(req_bytes, str(json_length)))

    @property
    def use_binary_outputs(self) -> bool:
        """Whether the client requests its outputs as binary data."""
        if self._is_from_grpc:
            return self._has_raw_inputs
        return bool((self.parameters or {}).get("binary_data_output", False))

    @property
    def message(self) -> InferenceRequest:
        """The request of the protocol.

        Raises:
            ValueError: it is not valid.
        """
        inputs = [each.tensor for each in self.inputs]
        with value_errors():
            return InferenceRequest(inputs, self.id, tuple(self.request_outputs or ()), self.parameters or {})

    def to_rest(self) -> RestBody:
        """Return the body of a REST request; encoded inputs make it one with binary data.

        Raises:
            ValueError: an input has no data, or its data does not fit.
        """
        head: Json = {"id": self.id or str(uuid4()), "model_name": self.model_name}
        if self.request_outputs:
            outputs = [(each.name, dict(each.parameters or {})) for each in self.request_outputs]
            head["outputs"] = [{"name": name, **({"parameters": p} if p else {})} for name, p in outputs]
        return _to_rest(head, self.parameters, "inputs", [(each, each.is_binary) for each in self.inputs])

    def to_grpc(self) -> pb.ModelInferRequest:
        """Return the gRPC message of the request.

        Raises:
            ValueError: an input has no data, or its data does not fit.
        """
        from appliance.tensors.grpc.converters import message_from_request

        is_raw = any(each.is_binary or is_array(each.data) for each in self.inputs)
        return message_from_request(self.message, self.model_name, self.model_version or "", is_raw=is_raw)

    def as_dataframe(self) -> pd.DataFrame:
        """Return a pandas frame with a column for each input."""
        import pandas as pd

        columns = {each.name: each.as_string() if each.datatype == "BYTES" else each.data for each in self.inputs}
        return pd.concat([pd.DataFrame(data, columns=[name]) for name, data in columns.items()], axis=1)

    def get_input_by_name(self, name: str) -> InferInput | None:
        """Return the input of this name, or None."""
        return next((each for each in self.inputs if each.name == name), None)

    def to_dict(self) -> Json:
        """Return the fields as a dict."""
        return {
            "id": self.id,
            "model_name": self.model_name,
            "inputs": [each.to_dict() for each in self.inputs],
            "parameters": self.parameters,
            "from_grpc": self.from_grpc,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InferRequest):
            return False
        return self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        outputs = list(self.request_outputs or ())
        return self.model_name, self.id, self.from_grpc, self.parameters or {}, self.inputs, outputs

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        return f"InferRequest({self.to_dict()})"


class InferResponse:
    """The tensors that a model returns."""

    def __init__(
        self,
        response_id: str | None,
        model_name: str,
        infer_outputs: Sequence[InferOutput],
        model_version: str | None = None,
        raw_outputs: Sequence[bytes] | None = None,
        from_grpc: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        parameters: Parameters | None = None,
        use_binary_outputs: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        requested_outputs: Sequence[RequestedOutput] | None = None,
    ) -> None:
        """`raw_outputs` are the encoded elements of all outputs.

        `use_binary_outputs` is for `to_rest` and `to_grpc`; a server encodes a response as its client requests.
        """
        self.id = response_id
        self.model_name = model_name
        self.outputs = list(infer_outputs)
        self.model_version = model_version
        self.parameters = parameters
        self.from_grpc = from_grpc  # type: ignore[method-assign,assignment]  # KServe has a method and an attribute
        self._use_binary_outputs = use_binary_outputs
        self._requested_outputs = requested_outputs
        _set_raw(self.outputs, raw_outputs)

    @classmethod
    def of(cls, response: InferenceResponse, *, from_grpc: bool = False) -> Self:
        """Return a response of the protocol as one of this class; BYTES are texts unless they come over gRPC."""
        outputs = [InferOutput.of(tensor, as_texts=not from_grpc) for tensor in response.outputs]
        return cls(
            response.id,
            response.model_name,
            outputs,
            response.model_version,
            from_grpc=from_grpc,
            parameters=dict(response.parameters),
        )

    @classmethod
    def from_grpc(cls, response: pb.ModelInferResponse) -> Self:
        """Return the response of a gRPC message.

        Raises:
            RequestError: it is not valid.
        """
        from appliance.tensors.grpc.converters import response_from_message

        return cls.of(response_from_message(response), from_grpc=True)

    @classmethod
    def from_rest(cls, response: Mapping[str, Any]) -> Self:
        """Return the response of a JSON object.

        Raises:
            RequestError: it is not valid.
        """
        return cls.of(read_response(msgspec.json.encode(response)))

    @classmethod
    def from_bytes(cls, res_bytes: bytes, json_length: int) -> Self:
        """Return the response of a body with binary data.

        Raises:
            RequestError: it is not valid.
        """
        return cls.of(read_response(res_bytes, str(json_length)))

    @property
    def message(self) -> InferenceResponse:
        """The response of the protocol, with the requested outputs.

        Raises:
            ValueError: it is not valid.
        """
        outputs = [each.tensor for each, _ in self._selected()]
        return InferenceResponse(self.model_name, self.model_version, outputs, self.id, self.parameters or {})

    def to_rest(self) -> RestBody:
        """Return the body of a REST response.

        Raises:
            ValueError: a requested output does not exist, or an output has no data.
        """
        head: Json = {"id": self.id, "model_name": self.model_name, "model_version": self.model_version}
        return _to_rest(head, self.parameters, "outputs", self._selected())

    def to_grpc(self) -> pb.ModelInferResponse:
        """Return the gRPC message of the response.

        Raises:
            ValueError: an output has no data, or its data does not fit.
        """
        from appliance.tensors.grpc.converters import message_from_response

        return message_from_response(self.message, (), is_raw=self._use_binary_outputs)

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """Return the output of this name, or None."""
        return next((each for each in self.outputs if each.name == name), None)

    def to_dict(self) -> Json:
        """Return the fields as a dict."""
        return {
            "id": self.id,
            "model_name": self.model_name,
            "outputs": [each.to_dict() for each in self.outputs],
            "parameters": self.parameters,
            "from_grpc": self.from_grpc,
        }

    def _selected(self) -> list[tuple[NamedTensor, bool]]:
        """Return the requested outputs, and whether each is requested as binary data."""
        if not self._requested_outputs:
            return [(each, self._use_binary_outputs) for each in self.outputs]
        selected: list[tuple[NamedTensor, bool]] = []
        for requested in self._requested_outputs:
            output = self.get_output_by_name(requested.name)
            if output is None:
                names = ", ".join(each.name for each in self.outputs)
                raise ValueError(f"there is no output {requested.name!r}; the outputs are: {names}")
            selected.append((output, bool((requested.parameters or {}).get("binary_data"))))
        return selected

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InferResponse):
            return False
        return self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        return self.model_name, self.model_version, self.id, self.from_grpc, self.parameters or {}, self.outputs

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        return f"InferResponse({self.to_dict()})"


def _set_raw(tensors: Sequence[NamedTensor], raw: Sequence[bytes] | None) -> None:
    if not raw:
        return
    if len(raw) != len(tensors):
        raise ValueError(f"there are {len(tensors)} tensors, and the encoded elements of {len(raw)}")
    for tensor, encoded in zip(tensors, raw, strict=True):
        tensor.set_raw(bytes(encoded))


def _to_rest(
    head: Json, parameters: Parameters | None, key: str, tensors: Sequence[tuple[NamedTensor, bool]]
) -> RestBody:
    bodies = [tensor.body(is_binary=is_binary) for tensor, is_binary in tensors]
    body: Json = {**head, key: [each for each, _ in bodies], **({"parameters": dict(parameters)} if parameters else {})}
    if not any(is_binary for _, is_binary in tensors):
        return body, None
    encoded = msgspec.json.encode(body)
    return b"".join((encoded, *(raw for _, raw in bodies))), len(encoded)
