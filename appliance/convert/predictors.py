"""Classic models of KServe's sklearnserver, xgbserver, lgbserver and predictiveserver as predictors."""

from __future__ import annotations

from collections.abc import Iterator

from ruamel.yaml.comments import CommentedMap

from appliance.config.raw_config import DataPath, items
from appliance.convert.containers import drop_variables, values_of
from appliance.convert.draft import mapping
from appliance.convert.manifest import Manifest

FRAMEWORKS = frozenset({"sklearn", "xgboost", "lightgbm", "onnx"})
"""The frameworks of predictors, which are KServe's names of model formats too."""

_PICKLE = "remove this unless you trust the author: a pickle can run code when it is loaded"


def add_predictor(manifest: Manifest, path: DataPath, framework: str, uri: str) -> CommentedMap:
    """Add the model at `path` of an InferenceService, whose files are at `uri`."""
    draft = manifest.draft
    model = draft.add_model(manifest.name, "predictor")
    draft.put("storage.uri", uri, into=model)
    if framework == "sklearn":
        draft.put("storage.allow_pickle", True, _PICKLE, into=model)
    draft.put("engine.framework", framework, into=model)
    manifest.take(*path, "name")
    manifest.take(*path, "image")
    _put_arguments(manifest, model, path, framework)
    _put_probabilities(manifest, model, path, framework)
    drop_variables(manifest, path)
    return model


def _put_arguments(manifest: Manifest, model: CommentedMap, path: DataPath, framework: str) -> None:
    for flag, value, places in _arguments(manifest, path):
        if flag == "model_name" and value:
            manifest.draft.put("name", value, into=model)
        elif flag == "nthread" and framework != "sklearn" and value.isdecimal():
            manifest.draft.put("engine.threads", int(value), into=model)
        elif flag == "http_port" and value.isdecimal():
            manifest.draft.put("server.port", int(value))
        elif flag != "model_dir":
            manifest.drop(places[0], "is a flag of KServe's server that this server does not have", f"--{flag}")
        for place in places:
            manifest.take(*place)


def _arguments(manifest: Manifest, path: DataPath) -> Iterator[tuple[str, str, list[DataPath]]]:
    """Yield each flag with its value, which is `--nthread=4` or two words, and with the paths of its words."""
    words = [str(word) for _, word in items(manifest.find(*path, "args"))]
    index = 0
    while index < len(words):
        flag, is_joined, value = words[index].partition("=")
        is_pair = not is_joined and index + 1 < len(words) and not words[index + 1].startswith("--")
        places: list[DataPath] = [(*path, "args", each) for each in range(index, index + (2 if is_pair else 1))]
        yield flag.removeprefix("--").replace("-", "_"), words[index + 1] if is_pair else value, places
        index += len(places)


def _put_probabilities(manifest: Manifest, model: CommentedMap, path: DataPath, framework: str) -> None:
    """What KServe's sklearnserver takes from a variable."""
    is_asked = values_of(manifest, path).get("PREDICT_PROBA", "").lower() == "true"
    for index, variable in items(manifest.find(*path, "env")):
        if framework == "sklearn" and mapping(variable).get("name") == "PREDICT_PROBA" and "value" in variable:
            manifest.take(*path, "env", index)
            if is_asked:
                manifest.draft.put("engine.predict_proba", True, into=model)
