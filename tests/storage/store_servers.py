"""One kind of place after the other where files can be put and fetched from, so that one test holds for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from storage.fake_hub import Hub
from storage.servers import azure, gcs, registry, s3, sftp, web

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.uri import scheme_of

Fill = Callable[[str, Mapping[str, bytes]], None]

# What reaches the servers of a scheme besides the URI.
_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "sftp": {"host_key_policy": "auto_add", "look_for_keys": False, "allow_agent": False}
}


def storage_at(uri: str, options: Mapping[str, object] | None = None) -> StorageConfig:
    """The storage of a URI, with the options that reach its server."""
    known = _OPTIONS.get(scheme_of(uri) or "", {})
    return StorageConfig.model_validate({"uri": uri, "options": {**known, **(options or {})}})


@dataclass(frozen=True, slots=True)
class StoreServer:
    """A store on the loopback.

    `fill` puts files by their names below a root, and `locate` gives the URI of a path in a root, a directory's with
    `/` at its end, and the credentials for the store on a port: its own, or that of a proxy before it.
    `overhead_bytes` is what two downloads of four megabytes need besides the model: handshakes and packets of SSH,
    and what it has read ahead at a kill.
    """

    kind: str
    port: int
    fill: Fill
    locate: Callable[[str, int], tuple[str, Mapping[str, object]]]
    overhead_bytes: int = 0

    def uri(self, path: str, port: int | None = None) -> str:
        """The URI of a path such as `root/model/`."""
        return self.locate(path, port or self.port)[0]

    def settings(self, port: int | None = None, **more: object) -> GlobalStorageConfig:
        """Settings that reach the store, with little patience."""
        transfer = {"stall_seconds": 30, "retries": 3, "chunk_bytes": 64 * 1024, "parallel": 4}
        credentials = self.locate("root", port or self.port)[1]
        return GlobalStorageConfig.model_validate({"transfer": transfer, "credentials": credentials, **more})


def of_s3(kind: str, server: s3.S3Server) -> StoreServer:
    """A bucket of a store that speaks S3."""

    def fill(root: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            server.put(f"{root}/{name}", data, s3.PRIVATE)

    def locate(path: str, port: int) -> tuple[str, Mapping[str, object]]:
        key, secret = s3.READER
        block = {"access_key_id": key, "secret_access_key": secret, "endpoint_url": f"http://127.0.0.1:{port}"}
        return f"s3://{s3.PRIVATE}/{path.rstrip('/')}", {"s3": [block]}

    return StoreServer(kind, server.port, fill, locate)


def of_gcs(server: gcs.GcsServer) -> StoreServer:
    """A bucket of Google's."""

    def fill(root: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            server.put(f"{root}/{name}", data)

    def locate(path: str, port: int) -> tuple[str, Mapping[str, object]]:
        block = {"anonymous": True, "endpoint_url": f"http://127.0.0.1:{port}"}
        return f"gs://{gcs.BUCKET}/{path.rstrip('/')}", {"gcs": [block]}

    return StoreServer("gs", server.port, fill, locate)


def of_azure(server: azure.AzureServer) -> StoreServer:
    """A container of Azure's."""

    def fill(root: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            server.put(f"{root}/{name}", data, azure.PRIVATE)

    def locate(path: str, port: int) -> tuple[str, Mapping[str, object]]:
        endpoint = f"http://127.0.0.1:{port}/{azure.ACCOUNT}"
        block = {"account": azure.ACCOUNT, "account_key": azure.KEY, "endpoint_url": endpoint}
        return f"az://{azure.PRIVATE}/{path.rstrip('/')}", {"azure": [block]}

    return StoreServer("az", server.port, fill, locate)


def of_web(kind: str, server: web.WebServer) -> StoreServer:
    """A web server, each directory with its listing."""

    def fill(root: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            server.put(f"{root}/{name}", data)
        for path in (server.root / root).iterdir():
            if path.is_dir():
                server.list_files(f"{root}/{path.name}")

    def locate(path: str, port: int) -> tuple[str, Mapping[str, object]]:
        return f"http://127.0.0.1:{port}/{quote(path)}", {}

    return StoreServer(kind, server.port, fill, locate)


def of_hub(hub: Hub) -> StoreServer:
    """Models of a hub, each root a model."""

    def fill(root: str, files: Mapping[str, bytes]) -> None:
        hub.repository(f"owner/{root}").commit(dict(files))

    def locate(path: str, port: int) -> tuple[str, Mapping[str, object]]:
        root, _, rest = path.rstrip("/").partition("/")
        uri = f"hf://owner/{root}" + (f"/{quote(rest)}" if rest else "")
        return uri, {"hf": [{"endpoint_url": f"http://127.0.0.1:{port}"}]}

    return StoreServer("hf", int(hub.url.rpartition(":")[2]), fill, locate)


def of_registry(server: registry.RegistryServer) -> StoreServer:
    """A registry, each directory of a root an artifact."""

    def fill(root: str, files: Mapping[str, bytes]) -> None:
        artifacts: dict[str, dict[str, bytes]] = {}
        for path, data in files.items():
            artifact, _, name = path.partition("/")
            if name:
                artifacts.setdefault(artifact, {})[name] = data
        for artifact, below in artifacts.items():
            server.push(f"{root}/{artifact}", registry.files_as_layers(below))

    def locate(path: str, port: int) -> tuple[str, Mapping[str, object]]:
        return f"oci://127.0.0.1:{port}/{path.rstrip('/')}", {}

    return StoreServer("oci", server.port, fill, locate)


def of_sftp(server: sftp.SftpServer) -> StoreServer:
    """A directory of an SSH server, which fsspec reads without a store of ours for its bytes."""

    def fill(root: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            server.put(f"{root}/{name}", data)

    def locate(path: str, port: int) -> tuple[str, Mapping[str, object]]:
        return f"sftp://{sftp.USER}:{sftp.PASSWORD}@127.0.0.1:{port}/{path}", {}

    return StoreServer("sftp", server.port, fill, locate, overhead_bytes=300_000)
