"""Serve models from one YAML file, or from a few lines of Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.python_api.infer_tensors import InferInput, InferOutput
    from appliance.python_api.infer_types import InferRequest, InferResponse
    from appliance.python_api.tensor_model import Model
    from appliance.server.model_server import ModelServer

__all__ = ["InferInput", "InferOutput", "InferRequest", "InferResponse", "Model", "ModelServer"]

_PLACES = {
    "ModelServer": "appliance.server.model_server",
    **dict.fromkeys(("InferInput", "InferOutput"), "appliance.python_api.infer_tensors"),
    **dict.fromkeys(("InferRequest", "InferResponse"), "appliance.python_api.infer_types"),
    "Model": "appliance.python_api.tensor_model",
}


def __getattr__(name: str) -> Any:
    # Nothing is imported before it is used: a config is checked by programs that serve nothing.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
