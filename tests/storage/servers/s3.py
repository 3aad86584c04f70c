"""Stores that speak S3: SeaweedFS, which checks signatures and rights, and moto, which has Amazon's corner cases."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from server_process import free_port
from storage.servers.processes import running

ADMIN = ("AKIATESTADMIN", "testsecretadmin")
READER = ("AKIATESTREAD", "testsecretread")
BUCKET = "models"
PRIVATE = "models-private"

_IDENTITIES = {
    "identities": [
        {
            "name": "admin",
            "credentials": [{"accessKey": ADMIN[0], "secretKey": ADMIN[1]}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER[0], "secretKey": READER[1]}],
            "actions": [f"Read:{PRIVATE}", f"List:{PRIVATE}"],
        },
        {"name": "anonymous", "actions": [f"Read:{BUCKET}", f"List:{BUCKET}"]},
    ]
}


@dataclass(frozen=True)
class S3Server:
    """A store with a bucket that all may read, and one that a reader may."""

    port: int

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> Any:  # Any: boto3 makes its clients at run time
        """A client that may do everything."""
        import boto3  # type: ignore[import-untyped] # has no types
        from botocore.config import Config  # type: ignore[import-untyped] # has no types

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ADMIN[0],
            aws_secret_access_key=ADMIN[1],
            region_name="us-east-1",
            config=Config(request_checksum_calculation="when_required"),
        )

    def put(self, key: str, data: bytes, bucket: str = BUCKET) -> None:
        """Store an object."""
        self.client.put_object(Bucket=bucket, Key=key, Body=data)


@contextmanager
def seaweedfs(directory: Path) -> Iterator[S3Server]:
    """SeaweedFS with everything in `directory`."""
    weed = Path(sys.executable).with_name("weed")
    config = directory / "s3.json"
    config.write_text(json.dumps(_IDENTITIES))
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip(names, (free_port() for _ in names), strict=True))
    grpc = dict(zip(names, (free_port() for _ in names), strict=True))
    (directory / "data").mkdir()
    command: list[str | Path] = [
        *(weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={directory / 'data'}"),
        *("-filer", "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=64", "-master.telemetry=false"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={port}" for name, port in grpc.items()),
    ]
    server = S3Server(ports["s3"])
    with running(command, f"{server.url}/healthz", directory / "log"):
        _make_buckets(server)
        yield server


@contextmanager
def moto() -> Iterator[S3Server]:
    """moto in a thread; it takes any key for a good one."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        found = S3Server(port)
        _make_buckets(found)
        yield found
    finally:
        server.stop()


def _make_buckets(server: S3Server) -> None:
    from botocore.exceptions import ClientError  # type: ignore[import-untyped] # has no types

    end = time.monotonic() + 60
    while True:
        try:
            for bucket in (BUCKET, PRIVATE):
                server.client.create_bucket(Bucket=bucket)
            # The first write needs a volume server, which comes a moment after the rest.
            server.put("ready", b"ready")
            server.client.delete_object(Bucket=BUCKET, Key="ready")
        except ClientError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return
