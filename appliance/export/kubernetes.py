"""Objects of Kubernetes: plain manifests, a chart of Helm, and an InferenceService of KServe.

Source: https://kubernetes.io/docs/reference/kubernetes-api/, https://helm.sh/docs/topics/charts/,
https://kserve.github.io/website/docs/reference/crd-api
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml.scalarstring import LiteralScalarString

from appliance.export.deployment import CACHE, CONFIG, USER, Deployment
from appliance.export.yaml_writer import to_yaml
from appliance.planner.planner import probes

Object = dict[str, Any]
"""An object of Kubernetes, or a part of one."""

_LABEL = "app.kubernetes.io/name"

# Replicas share the downloaded models.
_VOLUME: Object = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "50Gi"}}}


def kubernetes(deployment: Deployment) -> str:
    """Return a ConfigMap, a volume, a Deployment, a Service, a disruption budget and a network policy."""
    return to_yaml(
        f"{deployment.file.name} on Kubernetes: kubectl apply -f FILE\n{_secret_commands(deployment)}",
        list(_objects(deployment, _resources(deployment), _VOLUME)),
    )


def kserve(deployment: Deployment) -> str:
    """Return a ConfigMap, a volume and an InferenceService, whose container is the appliance."""
    pod = _pod(deployment, _resources(deployment))
    container = pod["containers"][0] | {"name": "kserve-container"}
    predictor = {"minReplicas": 1, **pod, "containers": [container]}
    service: Object = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": deployment.name,
            # Deployment and Service, without Knative.
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {"predictor": predictor},
    }
    return to_yaml(
        f"{deployment.file.name} as an InferenceService: kubectl apply -f FILE\n{_secret_commands(deployment)}",
        [_config_map(deployment), *([_claim(deployment, _VOLUME)] if deployment.needs_volume else []), service],
    )


def helm(deployment: Deployment) -> Mapping[str, str]:
    """Return the files of a chart by their paths; its values are the image, the resources and the volume."""
    values = {"image": deployment.image, "resources": _resources(deployment), "volume": _VOLUME}
    templated = replace(deployment, name="@name@", image="@image@", text="@config@\n")
    text = to_yaml("", list(_objects(templated, "@resources@", "@volume@")))
    templates = {
        "    @config@": '{{ .Files.Get "config.yaml" | indent 4 }}',
        "'@resources@'": "{{ toJson .Values.resources }}",
        "'@volume@'": "{{ toJson .Values.volume }}",
        "'@image@'": "{{ toJson .Values.image }}",
        # Names of other objects have a suffix.
        "@name@": "{{ .Release.Name }}",
    }
    for token, template in templates.items():
        text = text.replace(token, template)
    chart = {
        "apiVersion": "v2",
        "name": deployment.name,
        "description": f"Serves the models of {deployment.file.name}.",
        "type": "application",
        "version": "0.1.0",
    }
    return {
        "Chart.yaml": to_yaml("", [chart]),
        "values.yaml": to_yaml(_secret_commands(replace(deployment, name="RELEASE")), [values]),
        "config.yaml": deployment.text,
        "templates/appliance.yaml": text,
    }


def _objects(deployment: Deployment, resources: Any, volume: Any) -> Iterator[Object]:  # Any: objects, or templates
    yield _config_map(deployment)
    if deployment.needs_volume:
        yield _claim(deployment, volume)
    selector = {"matchLabels": {_LABEL: deployment.name}}
    yield {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(deployment),
        # No `replicas`: the default is one, and an autoscaler keeps its number.
        "spec": {
            "selector": selector,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            # A rollout fails after this time without progress, and a download is none.
            "progressDeadlineSeconds": max(600, deployment.load_seconds * 2),
            "template": {
                "metadata": {
                    "labels": {_LABEL: deployment.name},
                    **({"annotations": _scraping(deployment)} if deployment.are_metrics_open else {}),
                },
                "spec": _pod(deployment, resources),
            },
        },
    }
    yield {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(deployment),
        "spec": {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": selector},
    }
    yield from _network(deployment)


def _scraping(deployment: Deployment) -> Object:
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(deployment.probe_port),
        "prometheus.io/path": "/metrics",
    }


def _network(deployment: Deployment) -> Iterator[Object]:
    selector = {"matchLabels": {_LABEL: deployment.name}}
    ports = [
        {"name": name, "port": port, "targetPort": name} for name, port in deployment.ports.items() if name != "probes"
    ]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(deployment),
        "spec": {"selector": {_LABEL: deployment.name}, "ports": ports},
    }
    rules: list[Object] = [{"from": [{"podSelector": {}}], "ports": [{"port": each["name"]} for each in ports]}]
    if deployment.server.probe_port is not None:
        rules.append({"from": [{"namespaceSelector": {}}], "ports": [{"port": "probes"}]})
    yield {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(deployment),
        "spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules},
    }


def _metadata(deployment: Deployment) -> Object:
    return {"name": deployment.name, "labels": {_LABEL: deployment.name}}


def _config_map(deployment: Deployment) -> Object:
    data = {CONFIG.name: LiteralScalarString(deployment.text)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(deployment), "data": data}


def _claim(deployment: Deployment, volume: Any) -> Object:  # Any: an object, or a template
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": _metadata(deployment), "spec": volume}


def _pod(deployment: Deployment, resources: Any) -> Object:  # Any: an object, or a template
    """The pod: Pod Security's profile "restricted"."""
    mounts, volumes = _volumes(deployment)
    container: Object = {
        "name": "appliance",
        "image": deployment.image,
        "ports": [{"name": name, "containerPort": port} for name, port in deployment.ports.items()],
        **_probes(deployment),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    variables = [_variable(deployment, *each) for each in deployment.variables.items()]
    settings = [{"name": name, "value": value} for name, value in deployment.settings.items()]
    if environment := [*settings, *variables]:
        container["env"] = environment
    return {
        "automountServiceAccountToken": False,
        # A Service called vllm would set vLLM's own VLLM_PORT.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": deployment.stop_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _variable(deployment: Deployment, name: str, is_required: bool) -> Object:
    key: Object = {"name": deployment.name, "key": name}
    return {"name": name, "valueFrom": {"secretKeyRef": key if is_required else key | {"optional": True}}}


def _probes(deployment: Deployment) -> Object:
    found: Object = probes([], deployment.probe_port)
    # It would delay the liveness probe, which succeeds while models load and fails at once if one cannot be loaded.
    del found["startupProbe"]
    if deployment.are_probes_encrypted:
        for each in found.values():
            each["httpGet"]["scheme"] = "HTTPS"
    return found


def _resources(deployment: Deployment) -> Object:
    # No limit of the CPU, which would slow down every token.
    memory = f"{deployment.memory_gib}Gi"
    gpus = {"nvidia.com/gpu": str(deployment.gpus)} if deployment.gpus else {}
    return {"requests": {"cpu": "2", "memory": memory}, "limits": {"memory": memory, **gpus}}


def _volumes(deployment: Deployment) -> tuple[list[Object], list[Object]]:
    """The mounts of the container, and the volumes of the pod."""
    mounts: list[Object] = [
        {"name": "config", "mountPath": str(CONFIG.parent), "readOnly": True},
        {"name": "cache", "mountPath": str(CACHE)},
        # In the same volume, beside the models.
        *({"name": "cache", "mountPath": str(path), "subPath": f"stores{path}"} for path in deployment.stores),
    ]
    downloads = {"persistentVolumeClaim": {"claimName": deployment.name}} if deployment.needs_volume else None
    volumes: list[Object] = [
        {"name": "config", **_config_volume(deployment)},
        {"name": "cache", **(downloads or {"emptyDir": {}})},
    ]
    elsewhere = [target for target in deployment.secret_files if not target.is_relative_to(CONFIG.parent)]
    if elsewhere:
        volumes.append({"name": "files", "secret": {"secretName": f"{deployment.name}-files"}})
    mounts += [
        {"name": "files", "mountPath": str(target), "subPath": _file_key(target), "readOnly": True}
        for target in elsewhere
    ]
    root = deployment.config.storage.pvc_root
    for claim in deployment.claims:
        mounts.append({"name": claim, "mountPath": str(root / claim), "readOnly": True})
        volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    for number, path in enumerate(deployment.model_paths):
        mounts.append({"name": f"model-{number}", "mountPath": str(path), "readOnly": True})
        volumes.append({"name": f"model-{number}", "hostPath": {"path": str(path)}})
    if deployment.shared_memory:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - of the container
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": deployment.shared_memory}})
    return mounts, volumes


def _config_volume(deployment: Deployment) -> Object:
    """The directory of the config, with the files beside it: nothing can be mounted inside a read-only volume."""
    beside = [target for target in deployment.secret_files if target.is_relative_to(CONFIG.parent)]
    if not beside:
        return {"configMap": {"name": deployment.name}}
    items = [{"key": _file_key(target), "path": str(target.relative_to(CONFIG.parent))} for target in beside]
    secret = {"secret": {"name": f"{deployment.name}-files", "items": items}}
    return {"projected": {"sources": [{"configMap": {"name": deployment.name}}, secret]}}


def _file_key(target: Path) -> str:
    return re.sub("[^a-zA-Z0-9.]+", "-", str(target)).strip("-")


def _secret_commands(deployment: Deployment) -> str:
    """How the Secrets are made that the pod refers to."""
    lines = []
    if deployment.variables:
        literals = " ".join(f'--from-literal={name}="${name}"' for name in deployment.variables)
        lines.append(f"kubectl create secret generic {deployment.name} {literals}")
    if deployment.secret_files:
        files = " ".join(
            f"--from-file={_file_key(target)}={source}" for target, source in deployment.secret_files.items()
        )
        lines.append(f"kubectl create secret generic {deployment.name}-files {files}")
    return "\n".join(lines)
