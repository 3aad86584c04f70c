"""The image, run as a platform runs it: as somebody, from a root that is read-only, without capabilities or a network.

`just test-image` builds it and runs these.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import manifests
from cluster.podman import IMAGE, PROXY_IMAGE, Podman, own_network, require
from distributions import ROOT
from questions import CHAT
from ruamel.yaml import YAML
from server_process import wait_until

# Minutes on a machine that has other things to do.
pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory, chat_file: Path) -> Path:
    """A volume on which the model is already, so that nobody needs the network."""
    require()
    folder = tmp_path_factory.mktemp("volume")
    pull = [sys.executable, "-m", "appliance", "pull", str(chat_file), "--set", f"storage.cache_dir={folder}/appliance"]
    subprocess.run(pull, check=True, capture_output=True, timeout=280)
    # Whoever the container runs as.
    subprocess.run(["chmod", "-R", "a+rwX", str(folder)], check=True)
    return folder


@pytest.fixture
def podman() -> Iterator[Podman]:
    """Podman, away from this machine's network."""
    with own_network() as podman:
        yield podman


# One container that is its own upstream, with all that the image has beside proxies.
_PROXY = """\
models:
  - name: parrot
    class: generative
    engine: {python: "examples.parrot:Parrot"}
  - name: away
    class: proxy
    upstreams: [{url: "http://127.0.0.1:8080/v1", model: parrot}]
server: {grpc_port: 9000}
tracing: {endpoint: "http://127.0.0.1:4318"}
"""

# Stripped libraries that are damaged fail here.
_LOAD_ALL = """
import importlib, pathlib, sysconfig
root = pathlib.Path(sysconfig.get_path("platlib"))
for file in root.rglob("*.so"):
    importlib.import_module(".".join(file.relative_to(root).with_name(file.name.partition(".")[0]).parts))
    print(file.name)
"""


def _until_it_answers(podman: Podman, container: str, port: int) -> list[str]:
    """Wait until it is live, then ready, and ask it: the states it was in."""
    states: list[str] = []

    def is_ready() -> bool:
        status, body = podman.ask(container, "/readyz", port=port)
        # Each question is a process in the container, which has better things to do.
        time.sleep(1)
        states.append(body["models"][0]["state"] if body else "down")
        assert states[-1] != "failed", podman.log(container)
        return status == 200

    wait_until(lambda: podman.ask(container, "/livez", port=port)[0] == 200, 60, lambda: podman.log(container))
    wait_until(is_ready, 240, lambda: podman.log(container))
    status, answer = podman.ask(container, "/v1/chat/completions", CHAT)
    assert (status, "Paris" in answer["choices"][0]["message"]["content"]) == (200, True)
    return states


def _is_confined(podman: Podman, container: str) -> None:
    """Nothing can be done but to serve: no capability, none to be had, and nothing to be written but the volume."""
    status = dict(line.split(":\t", 1) for line in podman.run("exec", container, "cat", "/proc/1/status").splitlines())
    mounts = [line.split() for line in podman.run("exec", container, "cat", "/proc/mounts").splitlines()]
    roots = [mount[3].split(",") for mount in mounts if mount[1] == "/"]

    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert "0" not in status["Uid"].split()
    assert all("ro" in options for options in roots)


def test_any_user_serves_it_without_rights(podman: Podman, volume: Path, chat_file: Path) -> None:
    """
    A random user, a read-only root, no capability, no network, limited memory: live, ready, an answer, 0 at SIGTERM.
    """
    user, name = random.randint(20_000, 60_000), f"appliance-{random.randint(0, 1 << 32)}"
    confined = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"]
    limits = ["--memory=6g", "--memory-swap=6g", f"--user={user}:0"]
    mounts = [f"--volume={chat_file}:/etc/appliance/config.yaml:ro", f"--volume={volume}:/var/cache/appliance"]
    podman.run("run", "--detach", f"--name={name}", *confined, *limits, *mounts, IMAGE)
    try:
        states = _until_it_answers(podman, name, 8080)
        _is_confined(podman, name)
        podman.run("healthcheck", "run", name)
        podman.run("stop", "--time=60", name)
        state = podman.inspect(name)["State"]
    finally:
        podman.run("rm", "--force", name)

    assert states[-1] == "ready"
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def test_the_image_of_proxies_is_small_and_serves(podman: Podman, tmp_path: Path) -> None:
    """It has at most 300 MB, all its libraries load, and it forwards a request."""
    require(PROXY_IMAGE)
    name = f"appliance-proxy-{random.randint(0, 1 << 32)}"
    config = tmp_path / "config.yaml"
    config.write_text(_PROXY)
    config.chmod(0o644)
    tmp_path.chmod(0o755)
    confined = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"]
    mounts = [f"--volume={config}:/etc/appliance/config.yaml:ro", f"--volume={ROOT}/examples:/srv/examples:ro"]
    podman.run("run", "--detach", f"--name={name}", *confined, *mounts, "--env=PYTHONPATH=/srv", PROXY_IMAGE)
    try:
        wait_until(lambda: podman.ask(name, "/readyz")[0] == 200, 120, lambda: podman.log(name))
        body = {"model": "away", "messages": [{"role": "user", "content": "Hello there"}]}
        status, answer = podman.ask(name, "/v1/chat/completions", body)
        loaded = podman.run("exec", name, "python", "-c", _LOAD_ALL).splitlines()
    finally:
        podman.run("rm", "--force", name)

    assert podman.inspect(PROXY_IMAGE)["Size"] <= 300_000_000
    assert (status, answer["choices"][0]["message"]["content"].strip()) == (200, "You said: Hello there")
    assert {"loop", "cygrpc", "_rust"} <= {each.partition(".")[0] for each in loaded}


def test_the_manifests_run(podman: Podman, volume: Path, tmp_path: Path) -> None:
    """
    Podman plays the Deployment with its ConfigMap and its volume as they are: live, ready, an answer, and 0 at SIGTERM.
    """
    documents = manifests.read("appliance.yaml")
    claim = _file(tmp_path / "claim.yaml", [each for each in documents if each["kind"] == "PersistentVolumeClaim"])
    rest = _file(tmp_path / "rest.yaml", [each for each in documents if each["kind"] != "PersistentVolumeClaim"])
    podman.run("play", "kube", claim)
    try:
        podman.run("volume", "import", "appliance", "-", stdin=_archive(volume))
        podman.run("play", "kube", rest)
        container = podman.run("ps", "--filter=ancestor=" + IMAGE, "--format={{.Names}}")
        states = _until_it_answers(podman, container, 8081)
        _is_confined(podman, container)
        facts = podman.inspect(container)
        podman.run("stop", "--time=60", container)
        state = podman.inspect(container)["State"]
    finally:
        podman.run("play", "kube", "--down", rest)
        podman.run("volume", "rm", "--force", "appliance")

    assert states[-1] == "ready"
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    # As its limits say.
    assert facts["HostConfig"]["Memory"] == 6 << 30


def _file(path: Path, documents: list[manifests.Manifest]) -> str:
    with path.open("w") as file:
        YAML(typ="safe").dump_all(documents, file)
    return str(path)


def _archive(folder: Path) -> bytes:
    """What is on the volume, as podman imports it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()
