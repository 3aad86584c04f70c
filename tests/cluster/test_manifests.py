"""The manifests of examples/kubernetes: what Kubernetes and KServe know, and what fits the appliance they run."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from click.testing import CliRunner
from cluster import manifests
from cluster.manifests import FILES, FOLDER, Manifest
from doubles import DoubleFactory
from doubles import config as doubles
from reference_servers import kserve_environment

from appliance.cli.main import main
from appliance.config import Config, load
from appliance.config.models import GenerativeConfig
from appliance.models.manager import ModelManager
from appliance.server.app import create_probe_app
from appliance.server.worker_health import ServerHealth
from appliance.telemetry.recorder import RequestRecorder

KUBERNETES = "1.37"
PROGRAM = Path(__file__).parent / "kserve_models.py"
SERVICE_SCHEMA = json.loads((Path(__file__).parent / "llminferenceservice.schema.json").read_text())

# What the server may take to end after its drain: its engine first, then its connections.
END_SECONDS = 15

ALL = manifests.read()
REPLICAS = manifests.read("appliance.yaml", "autoscaling.yaml")

# The keys of a LeaderWorkerSet that we use: https://lws.sigs.k8s.io/docs/reference/leaderworkerset.v1/.
_OF_SPEC = ("replicas", "leaderWorkerTemplate")
_OF_TEMPLATE = ("size", "restartPolicy", "workerTemplate")

# What LeaderWorkerSet gives each container, here as rank 1's:
# https://lws.sigs.k8s.io/docs/reference/labels-annotations-and-environment-variables/.
GROUP = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "qwen3-0.qwen3.shop"}
PODS = [pytest.param(pod, settings, id=name) for name, pod, settings in manifests.pods(ALL)]


def _config(settings: Manifest, pod: Manifest, folder: Path) -> Config:
    """The config that a pod serves, with what its arguments put over it."""
    file = folder / "config.yaml"
    file.write_text(settings["data"]["config.yaml"])
    words = manifests.container(pod).get("args", [])
    changes = [words[place + 1].replace("{{.Name}}", "name") for place, word in enumerate(words) if word == "--set"]
    return load(file, changes, environ=GROUP).config


def _is_custom(manifest: Manifest) -> bool:
    return "kserve" in manifest["apiVersion"] or "leaderworkerset" in manifest["apiVersion"]


@pytest.mark.parametrize("manifest", [each for each in ALL if not _is_custom(each)], ids=manifests.name)
def test_kubernetes_knows_every_key(manifest: Manifest) -> None:
    """Each of Kubernetes' own manifests fits its schema, and has no key beside it."""
    assert kubernetes_validate.validate(dict(manifest), KUBERNETES, strict=True) == KUBERNETES


def test_a_misspelt_key_of_a_manifest_is_found() -> None:
    """The check refuses what Kubernetes would drop in silence."""
    deployment = copy.deepcopy(dict(manifests.of_kind("Deployment", ALL)))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 1

    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


@pytest.mark.slow
def test_kserve_knows_every_key(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """KServe's own classes give each of its manifests back as it was, and not a misspelt one."""
    python = kserve_environment(pytestconfig)
    good = FOLDER / "kserve.yaml"
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("minReplicas", "minReplicass").replace("multiModel", "multimodel"))

    exported = tmp_path / "exported.yaml"
    words = ["export", "kserve", "examples/proxy.yaml", "--variant", "gpu", "--output", str(exported)]
    assert CliRunner().invoke(main, words).exit_code == 0

    done = subprocess.run([python, PROGRAM, good, bad, exported], capture_output=True, text=True, check=True)
    shown = [json.loads(line) for line in done.stdout.splitlines()]

    assert shown[0] == {"ServingRuntime/appliance": [], "InferenceService/smollm2": []}
    assert shown[1] == {
        "ServingRuntime/appliance": [".spec.multimodel: unknown"],
        "InferenceService/smollm2": [".spec.predictor.minReplicass: unknown"],
    }
    assert shown[2] == {"InferenceService/appliance": []}


def test_kserve_knows_every_key_of_an_llm_inference_service() -> None:
    """It fits KServe's custom resource definition, and its pod fits Kubernetes' own schema."""
    _check_service(manifests.of_kind("LLMInferenceService", ALL))


@pytest.mark.parametrize("place", ["", "model", "router", "template"])
def test_a_misspelt_key_of_an_llm_inference_service_is_found(place: str) -> None:
    """At every level that KServe would drop it in silence."""
    service = copy.deepcopy(dict(manifests.of_kind("LLMInferenceService", ALL)))
    (service["spec"][place] if place else service["spec"])["replicass"] = 1

    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match="replicass"):
        _check_service(service)


def _check_service(service: Manifest) -> None:
    """Raise unless an LLMInferenceService fits KServe's definition, and its pod Kubernetes' own schema."""
    jsonschema.validate(service, SERVICE_SCHEMA)
    _check_pod(service["spec"]["template"], {})


def test_an_llm_inference_service_serves_the_model_that_kserve_publishes(tmp_path: Path) -> None:
    """
    Its config has the names that KServe routes by, the port and the certificate that KServe's gateway connects to, and
    the directory where KServe puts the model. Its container is the one that KServe completes.
    """
    manifest = manifests.of_kind("LLMInferenceService", ALL)
    ((_, pod, settings),) = manifests.pods(manifests.read("llminferenceservice.yaml"))
    config = _config(settings, pod, tmp_path)
    (model,) = config.models

    assert manifests.container(pod)["name"] == "main"
    assert model.name == manifest["spec"]["model"]["name"]
    assert model.storages["model"].uri == "/mnt/models"
    assert config.metadata.name == manifest["metadata"]["name"]
    assert config.server.port == 8000
    assert config.server.tls
    assert config.server.tls.certificate == Path("/var/run/kserve/tls/tls.crt")
    # KServe's own probes use HTTPS, and a key that is left out stays KServe's.
    probes = [manifests.container(pod)[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["httpGet"]["scheme"] for probe in probes} == {"HTTP"}


@pytest.mark.parametrize(("pod", "settings"), PODS)
def test_probes_and_ports_are_those_of_the_server(pod: Manifest, settings: Manifest, tmp_path: Path) -> None:
    """Probes ask the listener of probes for routes it has, and every port of the container is one that we listen on."""
    server = _config(settings, pod, tmp_path).server
    manager = ModelManager(doubles(), factory=DoubleFactory())
    app = create_probe_app(manager, ServerHealth(manager), RequestRecorder(manager.config))
    container = manifests.container(pod)
    numbers = {each["name"]: each["containerPort"] for each in container["ports"]}
    probes = [container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")]

    assert [probe["path"] for probe in probes] == ["/livez", "/readyz"]
    assert {probe["path"] for probe in probes} < {route.path for route in app.routes}
    assert {numbers.get(probe["port"], probe["port"]) for probe in probes} == {server.probe_port}
    assert set(numbers.values()) == {server.port, server.probe_port}


@pytest.mark.parametrize(("pod", "settings"), PODS)
def test_a_pod_is_given_longer_to_stop_than_it_takes(pod: Manifest, settings: Manifest, tmp_path: Path) -> None:
    """Its grace is more than the delay before the drain, the drain and the engine's end together."""
    server = _config(settings, pod, tmp_path).server

    assert server.drain_delay_seconds > 0
    assert _of_pod(pod, "terminationGracePeriodSeconds") >= (
        server.drain_delay_seconds + server.drain_seconds + END_SECONDS
    )


@pytest.mark.parametrize(("pod", "settings"), PODS)
def test_no_service_sets_variables_of_a_pod(pod: Manifest, settings: Manifest) -> None:
    """A Service called vllm would set VLLM_PORT, and others what their names happen to mean."""
    assert _of_pod(pod, "enableServiceLinks") is False


def _of_pod(pod: Manifest, key: str) -> Any:  # Any: JSON values
    """What a pod says of itself; of a runtime's pod the InferenceService says it."""
    pods = (pod, manifests.of_kind("InferenceService", ALL)["spec"]["predictor"])
    return next(each[key] for each in pods if key in each)


@pytest.mark.parametrize(("pod", "settings"), PODS)
def test_a_pod_is_restricted(pod: Manifest, settings: Manifest) -> None:
    """It passes Pod Security's strictest profile, and its root is read-only beside that.

    Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    security: Mapping[str, Any] = {**pod.get("securityContext", {}), **manifests.container(pod)["securityContext"]}

    assert security["runAsNonRoot"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {kind for volume in pod["volumes"] for kind in volume} <= {
        "name",
        "configMap",
        "persistentVolumeClaim",
        "emptyDir",
    }


@pytest.mark.parametrize(("pod", "settings"), PODS)
def test_every_volume_is_mounted_and_there(pod: Manifest, settings: Manifest) -> None:
    """No mount without a volume, no volume without a mount, no claim that nobody makes."""
    mounted = {mount["name"] for mount in manifests.container(pod)["volumeMounts"]}
    claims = {each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each}

    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert claims <= {each["metadata"]["name"] for each in ALL if each["kind"] == "PersistentVolumeClaim"}


def test_everything_selects_the_pods_of_the_deployment() -> None:
    """Service, budget, policy and spread mean the pods that the Deployment makes, and the autoscaler the Deployment."""
    deployment = manifests.of_kind("Deployment", REPLICAS)
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    target = manifests.of_kind("HorizontalPodAutoscaler", REPLICAS)["spec"]["scaleTargetRef"]

    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert spread["labelSelector"]["matchLabels"] == labels
    assert manifests.of_kind("Service", REPLICAS)["spec"]["selector"] == labels
    assert manifests.of_kind("PodDisruptionBudget", REPLICAS)["spec"]["selector"]["matchLabels"] == labels
    assert manifests.of_kind("NetworkPolicy", REPLICAS)["spec"]["podSelector"]["matchLabels"] == labels
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    # The autoscaler's number would be overwritten each time the file is applied.
    assert "replicas" not in deployment["spec"]


def test_a_group_of_machines_is_one_server() -> None:
    """
    Each pod learns its rank from LeaderWorkerSet, as many as the config counts; the Service leads to rank 0 alone, and
    the policy lets the group's pods reach each other on every port.
    """
    group = manifests.read("leaderworkerset.yaml")
    leaders, spec = manifests.of_kind("LeaderWorkerSet", group), manifests.of_kind("LeaderWorkerSet", group)["spec"]
    template = spec["leaderWorkerTemplate"]["workerTemplate"]
    labels = template["metadata"]["labels"]
    service, policy = (manifests.of_kind(kind, group) for kind in ("Service", "NetworkPolicy"))
    among, *_ = policy["spec"]["ingress"]

    assert set(spec) | set(spec["leaderWorkerTemplate"]) <= {*_OF_SPEC, *_OF_TEMPLATE}
    _check_pod(template["spec"], template["metadata"])
    assert service["metadata"]["name"] != leaders["metadata"]["name"]
    assert service["spec"]["selector"] == {
        "leaderworkerset.sigs.k8s.io/name": leaders["metadata"]["name"],
        "leaderworkerset.sigs.k8s.io/worker-index": "0",
    }
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert among == {"from": [{"podSelector": {"matchLabels": labels}}]}


def _check_pod(spec: Manifest, metadata: Manifest) -> None:
    """Raise unless a pod within another manifest has keys of Kubernetes' alone."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **metadata}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_config_of_a_group_is_each_machines(tmp_path: Path) -> None:
    """The same file makes rank 0 answer and rank 1 follow, and both take every GPU that their pod has."""
    ((_, pod, settings),) = manifests.pods(manifests.read("leaderworkerset.yaml"))
    (model,) = _config(settings, pod, tmp_path).models
    assert isinstance(model, GenerativeConfig)
    layout = model.layout

    assert layout != "auto"
    assert layout.is_worker_node
    assert (layout.nodes.count, layout.nodes.rank, layout.nodes.address) == (2, 1, GROUP["LWS_LEADER_ADDRESS"])
    assert model.failure_action == "exit"
    assert str(layout.local_ranks) == manifests.container(pod)["resources"]["limits"]["nvidia.com/gpu"]


def test_every_file_is_known() -> None:
    """A file that is added is read by the tests above."""
    assert [file.name for file in FILES] == [
        "appliance.yaml",
        "autoscaling.yaml",
        "kserve.yaml",
        "leaderworkerset.yaml",
        "llminferenceservice.yaml",
    ]
