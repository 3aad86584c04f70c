"""Azurite, Microsoft's emulator of Azure Blob Storage, which checks keys and signatures."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from server_process import free_port
from storage.servers.processes import running

# Known to everyone: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "models"
PRIVATE = "models-private"

_INSTALL_SECONDS = 240

# Before any test makes its own home.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance-tests"


class UnavailableError(Exception):
    """Azurite cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class AzureServer:
    """A store with a container that all may read, and one that nobody may without a credential."""

    port: int

    @property
    def url(self) -> str:
        """The address of the account."""
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """What Azure's tools take."""
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.url};"

    def put(self, name: str, data: bytes, container: str = CONTAINER) -> None:
        """Store a blob."""
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            client.get_blob_client(container, name).upload_blob(data, overwrite=True)

    def make_containers(self) -> None:
        """Make both containers."""
        from azure.storage.blob import BlobServiceClient, PublicAccess

        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            client.create_container(CONTAINER, public_access=PublicAccess.CONTAINER)
            client.create_container(PRIVATE)

    @staticmethod
    def signature(container: str) -> str:
        """A shared access signature that lets read and list a container."""
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        return generate_container_sas(
            account_name=ACCOUNT,
            container_name=container,
            account_key=KEY,
            permission=ContainerSasPermissions(read=True, list=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )


@contextmanager
def azurite(directory: Path, *options: str) -> Iterator[AzureServer]:
    """The emulator with everything in `directory`.

    Raises:
        UnavailableError: npm is missing, or cannot install it.
    """
    port = free_port()
    server = AzureServer(port)
    with running(command(directory, port, *options), server.url, directory / "log"):
        server.make_containers()
        yield server


def command(directory: Path, port: int, *options: str) -> list[str | Path]:
    """What starts the emulator on a port."""
    return [
        *(_node(), _installed() / "node_modules/azurite/dist/src/blob/main.js"),
        *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", directory),
        *("--silent", "--disableTelemetry", "--skipApiVersionCheck", *options),
    ]


def _node() -> str:
    if (node := shutil.which("node")) is None:
        raise UnavailableError("node is not installed")
    return node


def _installed() -> Path:
    """Where npm put it: once for all runs, by the version that is wanted."""
    wanted = Path(__file__).with_name("azurite") / "package.json"
    place = _CACHE / f"azurite-{sha256(wanted.read_bytes()).hexdigest()[:12]}"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "complete").exists():
            _install(wanted, place)
            (place / "complete").touch()
    return place


def _install(wanted: Path, place: Path) -> None:
    if (npm := shutil.which("npm")) is None:
        raise UnavailableError("npm is not installed")
    shutil.copy(wanted, place)
    options = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    try:
        subprocess.run([npm, "install", *options], cwd=place, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"npm cannot install azurite: {error.stderr.decode(errors='replace')[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"npm did not install azurite within {_INSTALL_SECONDS} seconds") from error
