"""The shapes of bodies that the document speaks of.

What a model takes beyond the protocol's envelope is the model's: the document leaves it open, as the routes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.tensors import DATATYPES

Schema = Mapping[str, Any]  # Any: JSON values

_OBJECT: Schema = {"type": "object"}
_TEXT: Schema = {"type": "string"}
_FACT: Schema = {"type": "boolean"}
_PARAMETERS: Schema = {"type": ["object", "null"]}

# A name is there to be looked up; UTF-8 in a path is none of the document's business.
_NAME: Schema = {"type": "string", "minLength": 1}


def ref(name: str) -> Schema:
    """Points to a shape by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _closed(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


SCHEMAS: Mapping[str, Schema] = {
    "OpenAIRequest": _closed((), model={"type": ["string", "null"], "description": "Unset is the only model."}),
    "Answer": {},
    "OpenAIError": _closed(
        ("error",),
        error=_closed(
            ("message", "type", "param", "code"),
            message=_TEXT,
            type=_TEXT,
            param={"type": ["string", "null"]},
            code={"type": ["string", "null"]},
        ),
    ),
    "InferenceError": _closed(("error",), error=_TEXT),
    "Model": _closed(("id", "object", "created", "owned_by", "name", "ready"), id=_TEXT, name=_TEXT, ready=_FACT),
    "Models": _closed(("object", "data", "models"), data=_list(ref("Model")), models=_list(_TEXT)),
    "Probe": _closed(("status", "models"), status=_TEXT, models=_list(_OBJECT)),
    "Tensor": _closed(
        ("name", "datatype", "shape"),
        name=_TEXT,
        datatype={"enum": sorted(DATATYPES)},
        shape=_list({"type": "integer"}),
        parameters=_PARAMETERS,
        data={"description": "Elements in one row, or lists within lists; unset where they follow as bytes."},
    ),
    "InferenceRequest": _closed(
        ("inputs",),
        id={"type": ["string", "null"]},
        parameters=_PARAMETERS,
        inputs=_list(ref("Tensor")),
        outputs={"type": ["array", "null"], "items": _closed(("name",), name=_TEXT, parameters=_PARAMETERS)},
    ),
    "InferenceResponse": _closed(
        ("model_name", "outputs"), model_name=_TEXT, model_version=_TEXT, id=_TEXT, outputs=_list(ref("Tensor"))
    ),
    "PredictionRequest": _closed((), instances={"type": ["array", "null"]}, parameters=_PARAMETERS),
    "Prediction": _OBJECT,
    "GenerateRequest": _closed(("text_input",), text_input=_TEXT, parameters=_OBJECT),
    "GenerateResponse": _closed(("model_name", "text_output"), model_name=_TEXT, text_output={}),
    "Server": _closed(("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
    "Live": _closed(("live",), live=_FACT),
    "Ready": _closed(("ready",), ready=_FACT),
    "ModelReady": _closed(("name", "ready"), name=_TEXT, ready=_FACT),
    "ModelMetadata": _closed(
        ("name", "versions", "platform", "inputs", "outputs"),
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(ref("Tensor")),
        outputs=_list(ref("Tensor")),
    ),
    "ModelNames": _closed(("models",), models=_list(_TEXT)),
    "Configuration": _closed(("name", "platform", "input", "output"), name=_TEXT),
    "Statistics": _closed(("model_stats",), model_stats=_list(_OBJECT)),
    "IndexRequest": _closed((), ready=_FACT),
    "Index": _list(_closed(("name", "version", "state", "reason"), name=_NAME, state=_TEXT)),
    "RepositoryChange": _closed(("name",), name=_TEXT),
    "Routes": _closed(("name", "routes"), name=_TEXT, routes=_list(_TEXT)),
}
"""Every shape, by its name."""
