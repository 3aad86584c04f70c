"""A manifest of Kubernetes that remembers what was read of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance.config.raw_config import DataPath, RawConfig, dotted
from appliance.convert.draft import Draft

# What names an object, and what a cluster adds to it.
_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")

_POD = "belongs to the pod: keep it in the manifest, as in examples/kubernetes/appliance.yaml"
_SCALING = "belongs to Kubernetes, such as in examples/kubernetes/autoscaling.yaml"
CREDENTIALS = "its credentials are storage.credentials or the variables of the stores"
"""The reason for a secret of a store."""

_GATEWAY = "belongs to the gateway"

# The reasons for keys that are not kept, by the key at any depth; of other keys, the manifest is named.
_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("minReplicas", "maxReplicas", "replicas", "scaleTarget", "scaleMetric", "scaling"), _SCALING),
    **dict.fromkeys(("autoScaling", "rolloutStrategy", "deploymentStrategy", "canaryTrafficPercent"), _SCALING),
    **dict.fromkeys(("router", "route", "gateway", "scheduler"), _GATEWAY),
    "logger": "set logging.payloads, which writes the same CloudEvents",
    "batcher": "vLLM batches requests itself",
    "transformer": "is a server of its own; its code runs here as a model with engine.python",
    "explainer": "is a server of its own; its code runs here as a model with engine.python",
    "baseRefs": "the configs that it names are not read; convert the service as the cluster has it, with them merged",
    "prefill": "prefill and decode on separate machines are two configs, with engine.args.kv_transfer_config",
    "worker": "each machine serves the same config, with its own layout.nodes.rank",
    "workerSpec": "each machine serves the same config, with its own layout.nodes.rank",
    "dataRPCPort": "set layout.nodes.port, which is one less",
    "kvCacheOffloading": "set engine.args.kv_transfer_config, with the TieringOffloadingSpec of vLLM",
    "storage": "names its bucket in a secret; set storage.uri, and storage.credentials",
    "storageUris": "has several URIs; set storage.uri to that of the model, and adapters to those of LoRA",
    "runtime": "is not read; convert it too: it may have arguments for the model",
    "envFrom": "set its variables for `appliance serve` too",
    "confidential": "encrypted models cannot be read",
    **dict.fromkeys(("annotations", "labels"), "belongs to the objects of Kubernetes"),
    "supportedModelFormats": "belongs to KServe, which chooses a runtime by it",
    "protocolVersions": "all protocols are served",
    "multiModel": "a config has as many models as it lists",
    "serviceAccountName": CREDENTIALS,
    "storageInitializer": "`appliance serve` downloads the model itself",
    "readinessProbe": "probes are /readyz and /livez; see examples/kubernetes/appliance.yaml",
    "livenessProbe": "probes are /readyz and /livez; see examples/kubernetes/appliance.yaml",
    "startupProbe": "probes are /readyz and /livez; see examples/kubernetes/appliance.yaml",
}


# Keys of pods and of their containers, and of workloads that only pods need.
_OF_PODS = frozenset(
    {"affinity", "automountServiceAccountToken", "containers", "dnsPolicy", "enableServiceLinks", "hostIPC"}
    | {"hostNetwork", "hostPID", "image", "imagePullPolicy", "imagePullSecrets", "initContainers", "lifecycle"}
    | {"nodeSelector", "ports", "priorityClassName", "resources", "restartPolicy", "runtimeClassName"}
    | {"schedulerName", "securityContext", "selector", "template", "terminationGracePeriodSeconds", "tolerations"}
    | {"topologySpreadConstraints", "volumeDevices", "volumeMounts", "volumes", "workingDir"}
)


class Manifest:
    """A manifest at the path `root` of a file; those of its values that are not read are listed."""

    def __init__(self, raw: RawConfig, draft: Draft, root: DataPath = ()) -> None:
        self.draft = draft
        self._raw, self._root = raw, root
        self._taken: set[DataPath] = {("apiVersion",), ("kind",), ("status",)}
        self._taken |= {("metadata", key) for key in _IDENTITY}

    @property
    def kind(self) -> str:
        """The kind of the object."""
        return str(self.find("kind"))

    @property
    def name(self) -> str:
        """The name of the object."""
        return str(self.find("metadata", "name") or "model")

    def take(self, *path: str | int) -> Any:  # Any: YAML
        """The value at `path`, which is then kept; None where there is none. What is put next belongs to its line."""
        self._taken.add(path)
        value = self.find(*path)
        if value is not None:
            self.draft.at(self.line(*path))
        return value

    def find(self, *path: str | int) -> Any:  # Any: YAML
        """The value at `path`; None where there is none."""
        return self._raw.find((*self._root, *path))

    def is_taken(self, *path: str | int) -> bool:
        """Whether the value at `path` was read."""
        return path in self._taken

    def line(self, *path: str | int) -> int:
        """The line that the value at `path` begins on, with its key."""
        whole = (*self._root, *path)
        return (self._raw.key_locations.get(whole) or self._raw.location(whole)).line

    def drop(self, path: DataPath, reason: str, what: str = "") -> None:
        """List the value at `path` as not kept."""
        self._taken.add(path)
        self.draft.at(self.line(*path)).drop(dotted((*self._root, *path)) + (what and f": {what}"), reason)

    def drop_rest(self) -> None:
        """List every value that was not read, as one line for each mapping of which nothing was."""
        for path in self._untaken(()):
            key = next((str(part) for part in reversed(path) if part in _REASONS), "")
            self.drop(path, _REASONS.get(key) or (_POD if _OF_PODS.intersection(path) else "has no key here"))

    def _untaken(self, path: DataPath) -> Iterator[DataPath]:
        if path in self._taken:
            return
        value = self.find(*path)
        is_partly_taken = any(taken[: len(path)] == path for taken in self._taken)
        if not is_partly_taken or not isinstance(value, dict | list):
            yield path
            return
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from self._untaken((*path, key))
