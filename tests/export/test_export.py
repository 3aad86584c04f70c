"""Deployments that `appliance export` writes, each checked by the tool or the schema of where it goes."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from appliance.cli.main import main

KUBERNETES = "1.37"
CONFIG = """\
models:
  - name: chat
    class: generative
    storage: {uri: /models/chat}
    layout: {tensor_parallel: 2}
  - name: volume
    class: generative
    storage: {uri: pvc://weights/other}
  - name: away
    class: proxy
    upstreams: [{url: "https://away.example.com/v1", api_key: "${env:AWAY_KEY}"}]
server:
  port: 9000
  probe_port: 9001
  tls: {certificate: /run/tls/tls.crt, key: /run/tls/tls.key}
  api_keys:
    - {name: one, value: "${file:keys/one}"}
    - {name: two, value: "${env:TWO}"}
    - {name: three, value: "${env:THREE}"}
  drain_delay_seconds: 5
  drain_seconds: ${env:DRAIN:-40}
"""
STOP_SECONDS = 5 + 40 + 25


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWAY_KEY", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config with everything that a deployment must provide."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/one").write_text("k" * 32)
    found = tmp_path / "models.yaml"
    found.write_text(CONFIG)
    return found


def _export(format_: str, file: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["export", format_, str(file), "--offline", *options])


def _text(format_: str, file: Path, *options: str) -> str:
    result = _export(format_, file, *options)
    assert result.exit_code == 0, result.output
    return result.stdout


def _objects(text: str) -> list[Mapping[str, Any]]:
    return list(YAML(typ="safe").load_all(text))


def _of_kind(kind: str, objects: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def test_compose_is_as_its_schema_wants_it(file: Path, tmp_path: Path) -> None:
    """The service has the ports, files, secrets and times of the config, and no right too many."""
    written = tmp_path / "compose.yaml"
    written.write_text(_text("compose", file, "--name", "shop", "--variant", "gpu"))
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", written],
        capture_output=True,
        text=True,
        check=False,
    )
    service = _objects(written.read_text())[0]["services"]["shop"]

    assert checked.returncode == 0, checked.stdout
    assert service["ports"] == ["9000:9000"]
    assert service["command"][:4] == ["serve", "/etc/appliance/config.yaml", "--set", "models.chat.on_failure=exit"]
    assert f"{file}:/etc/appliance/config.yaml:ro" in service["volumes"]
    assert f"{file.parent}/keys/one:/etc/appliance/keys/one:ro" in service["volumes"]
    assert "/models/chat:/models/chat:ro" in service["volumes"]
    assert service["environment"] == {
        **{name: f"${{{name}:?must be set}}" for name in ("AWAY_KEY", "TWO", "THREE")},
        "DRAIN": "${DRAIN:-}",
    }
    assert service["stop_grace_period"] == f"{STOP_SECONDS}s"
    assert service["shm_size"] == "4gb"
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    assert service["read_only"]


def test_a_unit_is_as_systemd_wants_it(file: Path, tmp_path: Path) -> None:
    """`systemd-analyze` finds nothing wrong; the unit waits as long as the config's drain takes."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "shop.service"
    text = _text("systemd", file, "--name", "shop")
    # The command of the test is none that can be executed.
    unit.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={sys.executable}", text))
    checked = subprocess.run([tool, "verify", unit], capture_output=True, text=True, check=False)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert f"TimeoutStopSec={STOP_SECONDS}\n" in text
    assert "EnvironmentFile=/etc/appliance/shop.env\n" in text
    assert f"serve {file} --set models.chat.on_failure=exit --set models.volume.on_failure=exit\n" in text


def test_a_quadlet_unit_names_its_secrets(file: Path) -> None:
    """Each secret that the unit refers to is made by a command in its comments."""
    text = _text("quadlet", file, "--name", "shop")
    unit = configparser.ConfigParser(strict=False)
    unit.read_string(text)
    made = set(re.findall(r"podman secret create (\S+)", text))

    assert {"Unit", "Container", "Service", "Install"} == set(unit.sections())
    assert set(re.findall(r"^Secret=([^,]+)", text, re.MULTILINE)) == made
    assert "shop-away-key" in made
    assert len(made) == 6
    assert f"StopTimeout={STOP_SECONDS}\n" in text


def test_manifests_are_as_kubernetes_wants_them(file: Path) -> None:
    """Each object fits the schema of Kubernetes; the pod has what the config needs."""
    objects = _objects(
        _text("kubernetes", file, "--name", "shop", "--variant", "gpu", "--image", "example/appliance:1")
    )
    pod = _of_kind("Deployment", objects)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}

    for each in objects:
        assert kubernetes_validate.validate(each, KUBERNETES, strict=True) == KUBERNETES
    assert _of_kind("ConfigMap", objects)["data"]["config.yaml"] == file.read_text()
    assert container["image"] == "example/appliance:1"
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": 9001}
    assert pod["terminationGracePeriodSeconds"] == STOP_SECONDS
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert mounts["/dev/shm"] == "shm"
    assert volumes[mounts["/mnt/pvc/weights"]]["persistentVolumeClaim"]["claimName"] == "weights"
    assert volumes[mounts["/models/chat"]]["hostPath"] == {"path": "/models/chat"}
    beside = volumes["config"]["projected"]["sources"][1]["secret"]["items"]
    assert [each["path"] for each in beside] == ["keys/one"]
    required = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"]}
    assert required["AWAY_KEY"] == {"name": "shop", "key": "AWAY_KEY"}
    assert required["DRAIN"]["optional"] is True
    # Nothing is downloaded.
    assert "PersistentVolumeClaim" not in {each["kind"] for each in objects}


def test_what_clients_store_outlives_the_process(file: Path) -> None:
    """Its directories are volumes that can be written, and no secrets."""
    stores = "responses: {store: file, directory: /var/lib/appliance/responses}\nbatches: {directory: /data/batches}\n"
    file.write_text(file.read_text() + stores)
    paths = ["/var/lib/appliance/responses", "/data/batches"]

    compose = _objects(_text("compose", file))[0]
    objects = _objects(_text("kubernetes", file))
    quadlet, unit = _text("quadlet", file), _text("systemd", file)

    named = [volume.split(":") for volume in compose["services"]["appliance"]["volumes"]]
    assert [each[1:] for each in named if each[0] in compose["volumes"]][1:] == [[path] for path in paths]
    (container,) = _of_kind("Deployment", objects)["spec"]["template"]["spec"]["containers"]
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert [mounts[path]["subPath"] for path in paths] == [f"stores{path}" for path in paths]
    assert _of_kind("PersistentVolumeClaim", objects)
    assert [line.split(":")[1] for line in quadlet.splitlines() if line.startswith("Volume=appliance-")][1:] == paths
    assert "StateDirectory=appliance/responses\n" in unit
    assert "ReadWritePaths=/data/batches\n" in unit


def test_probes_use_tls_where_the_server_does(file: Path) -> None:
    """Without a port of their own, probes are asked on the port of the clients."""
    file.write_text(file.read_text().replace("  probe_port: 9001\n", ""))
    pod = _of_kind("Deployment", _objects(_text("kubernetes", file)))["spec"]["template"]["spec"]

    assert pod["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 9000, "scheme": "HTTPS"}


# In a process of its own: Helm's engine is a library in Go, with threads and signal handlers.
_HELM = """
import json, sys
import helm_python as helm
folder, name, values = sys.argv[1:]
with helm.Chart.load(folder) as chart:
    files = chart.render(json.loads(values), name=name, namespace="shops")
print(json.dumps({"lint": helm.lint(folder, strict=True), "files": files}))
"""


def _helm(folder: Path, name: str, values: Mapping[str, str]) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """Return the report of `helm lint --strict` on a chart, and the objects of `helm template`."""
    command = [sys.executable, "-c", _HELM, str(folder), name, json.dumps(values)]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    return said["lint"], [each for text in said["files"].values() for each in _objects(text)]


def test_a_chart_gives_the_same_objects(file: Path, tmp_path: Path) -> None:
    """Helm finds nothing wrong with it; with its own values and the name of the release, it gives the manifests."""
    _text("helm", file, "--name", "shop", "--output", str(tmp_path / "chart"))

    lint, objects = _helm(tmp_path / "chart", "shop", {})
    _, changed = _helm(tmp_path / "chart", "other", {"image": "registry.example.com/other:2"})

    assert [each for each in lint["messages"] if each["error"] != "icon is recommended"] == lint["errors"] == []
    assert objects == _objects(_text("kubernetes", file, "--name", "shop"))
    deployment = _of_kind("Deployment", changed)
    assert deployment["metadata"]["name"] == "other"
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example.com/other:2"


def test_an_inference_service_runs_the_same_pod(file: Path) -> None:
    """KServe's container is that of the Deployment under another name; its classes are asked in tests/cluster."""
    service = _of_kind("InferenceService", _objects(_text("kserve", file, "--name", "shop")))
    pod = _of_kind("Deployment", _objects(_text("kubernetes", file, "--name", "shop")))["spec"]["template"]["spec"]

    (container,) = service["spec"]["predictor"]["containers"]
    assert container == {**pod["containers"][0], "name": "kserve-container"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/models/chat", "./models/chat", "storage.uri: is ./models/chat; must be an absolute path"),
        ("  port: 9000", "  host: 127.0.0.1", "server.host: is 127.0.0.1, which nothing outside of the container"),
        ("{tensor_parallel: 2}", "{tensor_parallel: 2, nodes: {count: 2, address: a}}", "needs 2 machines"),
    ],
)
def test_what_a_deployment_cannot_have_is_an_error_with_its_line(file: Path, old: str, new: str, message: str) -> None:
    """A relative path leads elsewhere in a container, and one Deployment holds no group of machines together."""
    file.write_text(file.read_text().replace(old, new))
    result = _export("kubernetes", file)

    assert result.exit_code == 2
    assert message in result.stderr
    assert re.search(rf"{file}:\d+:\d+: (models\[0\]|server)", result.stderr)


def test_a_file_that_exists_is_kept(file: Path, tmp_path: Path) -> None:
    """It is replaced with --force alone, and a chart needs a directory."""
    written = tmp_path / "compose.yaml"
    written.write_text("mine")

    refused = _export("compose", file, "--output", str(written))
    assert (refused.exit_code, written.read_text()) == (2, "mine")
    unwritable = _export("compose", file, "--output", str(written / "below"))
    assert "cannot be written" in unwritable.stderr
    assert _export("compose", file, "--output", str(written), "--force").exit_code == 0
    assert "services:" in written.read_text()
    assert _export("helm", file).exit_code == 2


def test_the_image_and_the_cache_are_those_of_the_container(tmp_path: Path) -> None:
    """Proxies have a small image, and a directory of this machine is not in any."""
    file = tmp_path / "proxy.yaml"
    file.write_text(
        "models: [{name: away, class: proxy, upstreams: [{url: 'https://away.example.com/v1'}]}]\n"
        "storage: {cache_dir: /data/models}\n"
    )

    service = YAML(typ="safe").load(_text("compose", file))["services"]["appliance"]
    (container,) = _of_kind("Deployment", _objects(_text("kubernetes", file)))["spec"]["template"]["spec"]["containers"]

    assert service["image"] == container["image"] == "localhost/appliance:proxy"
    assert service["environment"] == {"APPLIANCE__STORAGE__CACHE_DIR": "/var/cache/appliance"}
    assert container["env"] == [{"name": "APPLIANCE__STORAGE__CACHE_DIR", "value": "/var/cache/appliance"}]
    assert "Environment=APPLIANCE__STORAGE__CACHE_DIR=/var/cache/appliance\n" in _text("quadlet", file)


@pytest.mark.parametrize(("format_", "is_told"), [("compose", True), ("kubernetes", True), ("systemd", False)])
def test_an_upstream_on_this_machine_is_told(tmp_path: Path, format_: str, is_told: bool) -> None:
    """In a container its address is the container."""
    file = tmp_path / "proxy.yaml"
    file.write_text("models: [{name: near, class: proxy, upstreams: [{url: 'http://127.0.0.1:8000/v1'}]}]\n")

    result = _export(format_, file)

    assert result.exit_code == 0, result.output
    assert ("http://127.0.0.1:8000/v1: in a container" in result.stderr) is is_told


def test_what_is_logged_is_not_in_the_file(tmp_path: Path) -> None:
    """A store that does not answer is asked again, and told on standard error."""
    file = tmp_path / "models.yaml"
    file.write_text(
        "models: [{name: chat, class: generative, storage: {uri: 'http://127.0.0.1:9/chat/'}}]\n"
        "storage: {transfer: {retries: 1}}\n"
    )

    result = CliRunner().invoke(main, ["export", "compose", str(file)])

    assert result.exit_code == 0, result.output
    assert "storage.retried" in result.stderr
    assert "services" in YAML(typ="safe").load(result.stdout)
