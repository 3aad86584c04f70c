"""KServe's functions between requests, arrays and responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from appliance.core.openai_types import Json
from appliance.kserve.constants.constants import PredictorProtocol
from appliance.kserve.errors import InvalidInput
from appliance.python_api.infer_tensors import InferOutput
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.tensors.arrays import is_array, require_datatype

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = [
    "generate_uuid",
    "get_current_k8s_namespace",
    "get_default_target_namespace",
    "get_predict_input",
    "get_predict_response",
    "is_running_in_k8s",
    "is_v1",
    "is_v2",
    "strtobool",
]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_TRUE = frozenset({"y", "yes", "t", "true", "on", "1"})
_FALSE = frozenset({"n", "no", "f", "false", "off", "0"})


def generate_uuid() -> str:
    """Return a new id."""
    return str(uuid4())


def strtobool(val: str) -> bool:
    """Return the truth value of a text such as `yes` or `0`.

    Raises:
        ValueError: it is no truth value.
    """
    if val.lower() in _TRUE:
        return True
    if val.lower() in _FALSE:
        return False
    raise ValueError(f"invalid truth value {val!r}; must be true or false")


def is_v1(protocol: str | PredictorProtocol) -> bool:
    """Return whether a protocol is version 1 over REST."""
    return PredictorProtocol(protocol) is PredictorProtocol.REST_V1


def is_v2(protocol: str | PredictorProtocol) -> bool:
    """Return whether a protocol is version 2 over REST."""
    return PredictorProtocol(protocol) is PredictorProtocol.REST_V2


def is_running_in_k8s() -> bool:
    """Return whether the program runs in a pod."""
    return _SERVICE_ACCOUNT.parent.is_dir()


def get_current_k8s_namespace() -> str:
    """Return the namespace of the pod."""
    return (_SERVICE_ACCOUNT / "namespace").read_text()


def get_default_target_namespace() -> str:
    """Return the namespace of the pod, `default` outside of Kubernetes."""
    return get_current_k8s_namespace() if is_running_in_k8s() else "default"


# Any: rows of a frame, texts, or numbers.
def get_predict_input(
    payload: Json | InferRequest, columns: Sequence[str] | None = None
) -> np.ndarray[Any, Any] | pd.DataFrame | list[str]:
    """Return the input of a model of one input: a frame for instances that are objects, texts as a list, else an array.

    A request in tensors becomes a frame if its parameter `content_type` is `pd`.

    Raises:
        InvalidInput: there is none.
    """
    if isinstance(payload, InferRequest):
        if (payload.parameters or {}).get("content_type") == "pd":
            return payload.as_dataframe()
        if not payload.inputs:
            raise InvalidInput("The request has no inputs")
        tensor = payload.inputs[0]
        if tensor.datatype == "BYTES" and len(tensor.data) and isinstance(tensor.data[0], str):
            return list(tensor.data)
        return tensor.as_numpy()
    if not isinstance(payload, Mapping):
        raise InvalidInput(f"The payload is a {type(payload).__name__}; it must be an object or an InferRequest")
    return _from_instances(payload, columns)


def _from_instances(payload: Json, columns: Sequence[str] | None) -> Any:
    import numpy as np

    instances = payload.get("inputs", payload.get("instances"))
    if not isinstance(instances, list):
        raise InvalidInput('The body must have "instances" or "inputs", a list')
    first = instances[0] if instances else None
    if isinstance(first, str):
        return instances
    if isinstance(first, dict) or (isinstance(first, list) and first and isinstance(first[0], dict)):
        import pandas as pd

        return pd.concat([pd.DataFrame(each, columns=columns) for each in instances], axis=0)
    return np.array(instances)


def get_predict_response(payload: Json | InferRequest, result: Any, model_name: str) -> Json | InferResponse:
    """Return the response with a result: an array, a list, or a frame whose columns become outputs.

    Raises:
        InvalidInput: the payload is neither an object nor an `InferRequest`.
    """
    if isinstance(payload, InferRequest):
        return InferResponse(
            payload.id or generate_uuid(),
            model_name,
            _outputs(result),
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )
    if not isinstance(payload, Mapping):
        raise InvalidInput(f"The payload is a {type(payload).__name__}; it must be an object or an InferRequest")
    if _is_frame(result):
        return {"predictions": result.to_dict("records")}
    return {"predictions": result.tolist() if is_array(result) else result}


def _outputs(result: Any) -> list[InferOutput]:
    import numpy as np

    arrays = {name: result[name].to_numpy() for name in result} if _is_frame(result) else {"output-0": result}
    outputs = []
    for name, values in arrays.items():
        is_texts = isinstance(values, list) and bool(values) and isinstance(values[0], str)
        array = values if is_array(values) else np.array(values, np.object_ if is_texts else None)
        outputs.append(InferOutput(name, array.shape, require_datatype(name, array), array))
    return outputs


def _is_frame(result: object) -> bool:
    return hasattr(result, "columns") and hasattr(result, "iterrows")
