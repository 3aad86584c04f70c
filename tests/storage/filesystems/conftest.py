"""The servers, each started when the first test wants it and once for the whole run, and a store_server on each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from faultproxy import FaultProxy
from storage import fake_hub, store_servers
from storage.servers import azure, gcs, registry, s3, sftp, web
from storage.store_servers import StoreServer

# What would change who we are to a store.
_FOREIGN = (
    *("AWS_", "S3_", "GOOGLE_", "STORAGE_EMULATOR", "AZURE_", "AZ_", "HF_", "HUGGING", "TRANSFORMERS_"),
    *("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"),
)

KINDS = ("s3", "s3-moto", "gs", "az", "http", "http-nginx", "hf", "oci", "sftp")

# For long tests: moto is slow, and SeaweedFS is as much S3.
WITHOUT_MOTO = tuple(kind for kind in KINDS if kind != "s3-moto")


@pytest.fixture(autouse=True)
def only_given_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any credential, in which no cloud's metadata is looked for."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return monkeypatch


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    """SeaweedFS."""
    with s3.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[s3.S3Server]:
    """moto."""
    with s3.moto() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gcs.GcsServer]:
    """fake-gcs-server."""
    with gcs.fake_gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[azure.AzureServer]:
    """Azurite, where npm can bring it."""
    try:
        azure.command(Path(), 0)
    except azure.UnavailableError as error:
        pytest.skip(f"no Azurite: {error}")
    with azure.azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def web_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[web.WebServer]:
    """A web server of our own."""
    with web.own(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[web.WebServer]:
    """nginx, where it is installed."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    with web.nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="session")
def registry_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.RegistryServer]:
    """A registry without logins, where it is installed or apt can bring it."""
    try:
        registry.require()
    except registry.UnavailableError as error:
        pytest.skip(f"no registry: {error}")
    with registry.docker_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def hub_server() -> Iterator[fake_hub.Hub]:
    """A stand-in for the Hugging Face hub."""
    with fake_hub.serving() as hub:
        yield hub


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sftp.SftpServer]:
    """An SSH server."""
    with sftp.running(tmp_path_factory.mktemp("sftp-root")) as server:
        yield server


def _start(kind: str, request: pytest.FixtureRequest) -> StoreServer:
    if kind == "s3":
        return store_servers.of_s3(kind, request.getfixturevalue("seaweedfs"))
    if kind == "s3-moto":
        return store_servers.of_s3(kind, request.getfixturevalue("moto"))
    if kind == "gs":
        return store_servers.of_gcs(request.getfixturevalue("gcs_server"))
    if kind == "az":
        return store_servers.of_azure(request.getfixturevalue("azurite"))
    if kind == "oci":
        return store_servers.of_registry(request.getfixturevalue("registry_server"))
    if kind == "sftp":
        return store_servers.of_sftp(request.getfixturevalue("sftp_server"))
    if kind == "hf":
        return store_servers.of_hub(request.getfixturevalue("hub_server"))
    return store_servers.of_web(kind, request.getfixturevalue("nginx" if kind == "http-nginx" else "web_server"))


@pytest.fixture(params=KINDS)
def store_server(request: pytest.FixtureRequest) -> StoreServer:
    """Each kind of store in turn."""
    return _start(request.param, request)


@pytest.fixture
def root() -> str:
    """A directory of the test's own in a store that all tests share."""
    return f"root-{uuid4().hex[:12]}"


@pytest.fixture
def proxy(store_server: StoreServer) -> Iterator[FaultProxy]:
    """A proxy before the store."""
    with FaultProxy(store_server.port) as proxy:
        yield proxy
