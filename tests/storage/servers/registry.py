"""Debian's docker-registry, the reference implementation of the registries' protocol."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_process import free_port
from storage.servers.processes import running

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

_INSTALL_SECONDS = 120

# Before any test makes its own home.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance-tests"


class UnavailableError(Exception):
    """The registry cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The bytes of a layer, what they are said to be, and their name, if any."""

    data: bytes
    media: str = LAYER
    title: str | None = None
    annotations: Mapping[str, str] | None = None

    def descriptor(self) -> dict[str, Any]:
        """What a manifest says of it."""
        named = {"org.opencontainers.image.title": self.title} if self.title else {}
        return {**describe(self.data, self.media), "annotations": {**named, **(self.annotations or {})}}


@dataclass(frozen=True, slots=True)
class RegistryServer:
    """A registry on the loopback, with everything in a directory that others can serve too."""

    port: int
    data: Path

    @property
    def host(self) -> str:
        """Its name in a URI."""
        return f"127.0.0.1:{self.port}"

    def uri(self, name: str, reference: str = ":latest") -> str:
        """The URI of an artifact."""
        return f"oci://{self.host}/{name}{reference}"

    def push(self, name: str, layers: Sequence[Layer], tag: str = "latest", media: str = MANIFEST) -> str:
        """Store an artifact or image, and return its digest."""
        config = b"{}"
        for data in (config, *(layer.data for layer in layers)):
            self._push_blob(name, data)
        manifest = {
            "schemaVersion": 2,
            "mediaType": media,
            "config": describe(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor() for layer in layers],
        }
        return self.push_manifest(name, manifest, tag)

    def push_manifest(self, name: str, manifest: Mapping[str, Any], tag: str) -> str:
        """Store a manifest or an index, and return its digest."""
        body = json.dumps(manifest).encode()
        self._send("PUT", f"http://{self.host}/v2/{name}/manifests/{tag}", body, manifest["mediaType"])
        return digest_of(body)

    def _push_blob(self, name: str, data: bytes) -> None:
        location = self._send("POST", f"http://{self.host}/v2/{name}/blobs/uploads/", b"", "application/octet-stream")
        self._send("PUT", f"{location}&digest={digest_of(data)}", data, "application/octet-stream")

    def _send(self, method: str, url: str, body: bytes, kind: str) -> str:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers.get("Location", ""))


def digest_of(data: bytes) -> str:
    """The name of a blob."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(data: bytes, media: str) -> dict[str, Any]:
    """The descriptor of a blob."""
    return {"mediaType": media, "digest": digest_of(data), "size": len(data)}


def files_as_layers(files: Mapping[str, bytes]) -> list[Layer]:
    """Each file as a layer with its title, as ORAS pushes them."""
    return [Layer(data, title=name) for name, data in files.items()]


def tar(files: Mapping[str, bytes], *others: tarfile.TarInfo) -> bytes:
    """A tar of files and of other members, such as links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info in others:
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_layer(files: Mapping[str, bytes], *others: tarfile.TarInfo) -> Layer:
    """A layer as builders of images write it."""
    return Layer(gzip.compress(tar(files, *others)), f"{LAYER}+gzip")


@contextmanager
def docker_registry(
    directory: Path, data: Path | None = None, auth: Mapping[str, object] | None = None
) -> Iterator[RegistryServer]:
    """The registry with everything in `directory`, or with the data of another and a login before it.

    Raises:
        UnavailableError: it is not installed, and apt cannot download it.
    """
    program, data = _program(), data or directory / "data"
    port = free_port()
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(data)}},
        "http": {"addr": f"127.0.0.1:{port}"},
        **({"auth": auth} if auth else {}),
    }
    # JSON is YAML too.
    (directory / "config.yml").write_text(json.dumps(config))
    command: list[str | Path] = [program, "serve", directory / "config.yml"]
    with running(command, f"http://127.0.0.1:{port}/v2/", directory / "log"):
        yield RegistryServer(port, data)


def require() -> None:
    """Raise UnavailableError if the registry cannot be had here."""
    _program()


def _program() -> Path:
    """The installed program, or Debian's package, downloaded once for all runs."""
    if found := shutil.which("docker-registry"):
        return Path(found)
    place = _CACHE / "docker-registry"
    place.mkdir(parents=True, exist_ok=True)
    program = place / "usr/bin/docker-registry"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _download(place)
    return program


def _download(place: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("docker-registry is not installed, and this is no Debian")
    try:
        for command in (
            ["apt-get", "download", "docker-registry"],
            ["sh", "-c", "dpkg-deb -x docker-registry_*.deb ."],
        ):
            subprocess.run(command, cwd=place, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"apt cannot download docker-registry: {error.stderr.decode()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"docker-registry did not come within {_INSTALL_SECONDS} seconds") from error
