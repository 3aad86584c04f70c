"""Tensors of the Open Inference Protocol: datatypes, shapes, bytes, and requests and responses made of them."""

from __future__ import annotations

from appliance.tensors.datatype import DATATYPES, Datatype, datatype
from appliance.tensors.inference import InferenceRequest, InferenceResponse, RequestedOutput
from appliance.tensors.tensor import Tensor

__all__ = [
    "DATATYPES",
    "Datatype",
    "InferenceRequest",
    "InferenceResponse",
    "RequestedOutput",
    "Tensor",
    "datatype",
]
