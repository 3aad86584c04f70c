"""KServe's public names: in a program that was written for KServe, only its imports change.

They are faces of the classes of `appliance`; docs/guides/kserve.md says which names differ and which are absent. The
extra `kserve` installs what they need. Source: https://github.com/kserve/kserve, python/kserve.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.kserve.grpc_client import InferenceGRPCClient
    from appliance.kserve.inference_client import InferenceRESTClient, RESTConfig
    from appliance.kserve.model import Model
    from appliance.kserve.model_repository import ModelRepository
    from appliance.kserve.model_server import ModelServer
    from appliance.kserve.predictor_config import PredictorConfig
    from appliance.kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse
    from appliance.kserve.storage import Storage

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceGRPCClient",
    "InferenceRESTClient",
    "Model",
    "ModelRepository",
    "ModelServer",
    "PredictorConfig",
    "RESTConfig",
    "Storage",
]

_PLACES = {
    "Model": "model",
    "ModelRepository": "model_repository",
    "ModelServer": "model_server",
    "PredictorConfig": "predictor_config",
    "InferenceGRPCClient": "grpc_client",
    **dict.fromkeys(("InferenceRESTClient", "RESTConfig"), "inference_client"),
    "Storage": "storage",
    **dict.fromkeys(("InferInput", "InferOutput", "InferRequest", "InferResponse"), "protocol.infer_type"),
}

_MODULES = frozenset(
    {"constants", "errors", "inference_client", "logging", "model", "model_repository", "model_server", "utils"}
)


def __getattr__(name: str) -> Any:
    # Nothing is imported before it is used: clients need no server.
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; docs/guides/kserve.md lists KServe's names")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
