"""KServe's module of this name."""

from appliance.python_api.infer_tensors import InferInput, InferOutput
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.tensors.tensor import RequestedOutput

__all__ = ["InferInput", "InferOutput", "InferRequest", "InferResponse", "RequestedOutput"]
