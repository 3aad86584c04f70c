"""KServe's manifests read by KServe's own classes, in KServe's environment: what they drop or change is a mistake.

``python kserve_models.py FILE...`` prints one JSON object a file: a list of faults for each manifest of KServe's.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CLASSES: Mapping[str, str] = {
    "serving.kserve.io/v1alpha1/ServingRuntime": "V1alpha1ServingRuntime",
    "serving.kserve.io/v1beta1/InferenceService": "V1beta1InferenceService",
}


def faults(sent: object, kept: object, place: str = "") -> Iterator[str]:
    """Where a manifest that went through the classes is not what it was."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        for key, value in sent.items():
            if key in kept:
                yield from faults(value, kept[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}: unknown"
    elif isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        for number, (one, other) in enumerate(zip(sent, kept, strict=True)):
            yield from faults(one, other, f"{place}[{number}]")
    elif sent != kept or type(sent) is not type(kept):
        yield f"{place}: {sent!r} became {kept!r}"


def _round_trip(manifest: Any, name: str) -> object:  # Any: a manifest, and modules that only this environment has
    kubernetes, kserve = importlib.import_module("kubernetes.client"), importlib.import_module("kserve.models")
    for each in vars(kserve):
        if each.startswith(("V1", "Knative")):
            setattr(kubernetes.models, each, getattr(kserve, each))
    client = kubernetes.ApiClient()
    read = client._ApiClient__deserialize(manifest, name)
    return client.sanitize_for_serialization(read)


def _checked(manifest: Any, name: str) -> list[str]:
    try:
        return list(faults(manifest, _round_trip(manifest, name)))
    except (ValueError, TypeError, AttributeError) as error:
        return [f"{type(error).__name__}: {error}"]


def main(files: list[str]) -> None:
    """Check every manifest that KServe has a class for."""
    yaml = importlib.import_module("yaml")
    for file in files:
        shown = {}
        for manifest in filter(None, yaml.safe_load_all(Path(file).read_text())):
            kind = f"{manifest['apiVersion']}/{manifest['kind']}"
            if kind in CLASSES:
                shown[f"{manifest['kind']}/{manifest['metadata']['name']}"] = _checked(manifest, CLASSES[kind])
        print(json.dumps(shown))


if __name__ == "__main__":
    main(sys.argv[1:])
