"""The manifests of examples/kubernetes as a cluster reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FOLDER = Path(__file__).parents[2] / "examples/kubernetes"
FILES: Sequence[Path] = sorted(FOLDER.glob("*.yaml"))

Manifest = Mapping[str, Any]  # Any: JSON values


def read(*names: str) -> list[Manifest]:
    """All manifests of some of the files, or of all of them."""
    files = [FOLDER / name for name in names] or FILES
    return [each for file in files for each in YAML(typ="safe").load_all(file.read_text()) if each]


def of_kind(kind: str, manifests: Sequence[Manifest]) -> Manifest:
    """The one of a kind."""
    (found,) = (each for each in manifests if each["kind"] == kind)
    return found


def name(manifest: Manifest) -> str:
    """What it is called, with its kind."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """The name of each manifest that makes pods of ours, its pod, and the ConfigMap with what that serves."""
    settings = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "ConfigMap"}
    for each in manifests:
        if each["kind"] == "LeaderWorkerSet":
            pod = each["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
        elif each["kind"] == "LLMInferenceService":
            pod = each["spec"]["template"]
        else:
            pod = each["spec"]["template"]["spec"] if each["kind"] == "Deployment" else each.get("spec", {})
        if "containers" in pod:
            (config,) = (volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume)
            yield name(each), pod, settings[config]


def container(pod: Manifest) -> Manifest:
    """The one container of a pod."""
    (only,) = pod["containers"]
    found: Manifest = only
    return found
