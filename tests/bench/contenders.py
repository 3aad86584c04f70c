"""Whoever brings a model here, ours among them: one for each run of this file, in a process of its own.

Run as ``python contenders.py NAME PLACE``, where PLACE is JSON; prints JSON with its seconds, those of processors, and
the peak of its memory.
It imports nothing of the project but in `ours`: some contenders live in an environment of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Place = dict[str, Any]  # Any: JSON values


def ours(place: Place) -> Callable[[], object]:
    """This project, all of it: listing, ranges, digests, fsync, manifest."""
    from appliance.config.storage import GlobalStorageConfig, StorageConfig
    from appliance.storage import materialize
    from appliance.storage.filesystems.registry import FILESYSTEMS, RemoteFilesystem

    scheme = FILESYSTEMS[place["uri"].partition("://")[0]]
    assert isinstance(scheme, RemoteFilesystem)
    # What a contender imports is not counted, for anyone; the libraries are all that ours leaves for later.
    libraries = {"s3": "s3fs", "gs": "gcsfs.core", "hf": "huggingface_hub.hf_file_system"}
    for module in (scheme.opener.partition(":")[0], libraries.get(place["uri"].partition(":")[0], "fsspec")):
        __import__(module)
    given = {"cache_dir": place["target"], "credentials": place["credentials"], "transfer": place.get("transfer", {})}
    settings = GlobalStorageConfig.model_validate(given)
    return lambda: materialize(StorageConfig(uri=place["uri"]), settings, lambda *_: None)


def s3fs(place: Place) -> Callable[[], object]:
    """fsspec's way to S3, as it is by default."""
    import s3fs  # has no types, as the others here

    def work() -> None:
        files = s3fs.S3FileSystem(
            key=place["key"],
            secret=place["secret"],
            endpoint_url=place["endpoint"],
            client_kwargs={"region_name": "us-east-1"},
        )
        files.get(place["path"], place["target"], recursive=True)

    return work


def boto3(place: Place) -> Callable[[], object]:
    """boto3's transfer manager, which is what `aws s3 cp --recursive` uses."""
    import boto3  # type: ignore[import-untyped]
    from s3transfer.manager import TransferManager  # type: ignore[import-untyped]

    bucket, _, prefix = place["path"].partition("/")

    def work() -> None:
        client = boto3.client(
            "s3",
            endpoint_url=place["endpoint"],
            aws_access_key_id=place["key"],
            aws_secret_access_key=place["secret"],
            region_name="us-east-1",
        )
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        with TransferManager(client) as manager:
            for key in [each["Key"] for page in pages for each in page["Contents"]]:
                path = Path(place["target"]) / key.removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                manager.download(bucket, key, str(path))

    return work


def gcsfs(place: Place) -> Callable[[], object]:
    """fsspec's way to Google Cloud Storage, as it is by default but for a question that emulators do not answer."""
    import gcsfs

    def work() -> None:
        files = gcsfs.GCSFileSystem(token="anon", project="test", endpoint_url=place["endpoint"])
        files.get(place["path"], place["target"], recursive=True)

    return work


def fsspec_http(place: Place) -> Callable[[], object]:
    """fsspec's way to the web; it cannot list, so it is told the names."""
    import fsspec.implementations.http

    def work() -> None:
        files = fsspec.implementations.http.HTTPFileSystem()
        targets = [Path(place["target"]) / name for name in place["names"]]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        files.get([f"{place['uri']}{name}" for name in place["names"]], [str(target) for target in targets])

    return work


def huggingface_hub(place: Place) -> Callable[[], object]:
    """The hub's own library."""
    from huggingface_hub import snapshot_download

    return lambda: snapshot_download(place["uri"].removeprefix("hf://"), local_dir=place["target"])


def kserve(place: Place) -> Callable[[], object]:
    """KServe's storage initializer."""
    from kserve_storage import Storage  # type: ignore[import-not-found] # installed elsewhere

    return lambda: Storage.download(place["uri"], place["target"])


def _peak() -> int:
    """The most memory of this process, or of the largest child, in bytes.

    Not `ru_maxrss` of the process itself: that begins with what the process was forked from.
    """
    status = Path("/proc/self/status").read_text()
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def _verify(target: Path) -> None:
    """What ours has done by then and others leave to the user: each file safe on the disk, and its SHA-256 known."""

    def verify(path: Path) -> str:
        with path.open("rb") as file:
            os.fsync(file)
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(verify, sorted(path for path in target.rglob("*") if path.is_file())))


def _processor() -> float:
    """Seconds that processors worked for this process and its children, also in the kernel."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    place = json.loads(sys.argv[2])
    work = globals()[sys.argv[1]](place)
    begun, before = time.monotonic(), _processor()
    work()
    seconds, processor = time.monotonic() - begun, _processor() - before
    facts = {"seconds": seconds, "processor": processor, "peak": _peak()}
    if sys.argv[1] != "ours":
        _verify(Path(place["target"]))
    print(json.dumps({**facts, "verified": time.monotonic() - begun}))
