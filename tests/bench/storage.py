"""Bring a model of mixed files from real servers on the loopback: ours beside its peers, in the same run, as ratios.

Run as ``just bench storage``; ``--size 200`` makes the model smaller, ``--only s3,hf`` leaves servers out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# Where pytest finds the servers, too.
sys.path.insert(0, str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from storage.fake_hub import Hub
    from storage.servers.s3 import S3Server
    from storage.store_servers import StoreServer

_MB = 1_000_000
_LATENCY_SECONDS = 0.02
_LONGEST_SECONDS = 900
_CONTENDERS = Path(__file__).with_name("contenders.py")

PEERS: Mapping[str, tuple[str, ...]] = {
    "s3": ("s3fs", "boto3", "kserve"),
    "gs": ("gcsfs", "kserve"),
    "http": ("fsspec_http",),
    "hf": ("huggingface_hub", "kserve"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """
    The best of some runs; `fault` is why there is none. `verified` are the seconds until every file is on the disk and
    its SHA-256 known, as ours has it from the start.
    """

    name: str
    seconds: float = 0
    verified: float = 0
    processor: float = 0
    peak: int = 0
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Files(Mapping[str, bytes]):
    """Files on a disk that are read when they are wanted."""

    root: Path
    names: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def main() -> None:
    """Start the servers, let everyone run, and print a table for each."""
    parser = argparse.ArgumentParser(prog="just bench storage", description=__doc__)
    parser.add_argument("--size", type=int, default=1000, help="of the model, in MB")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the best counts")
    parser.add_argument("--only", default=",".join(PEERS), help="servers to measure with")
    parser.add_argument("--transfer", type=json.loads, default={}, help="our transfer settings, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        root = Path(scratch)
        files = _make(root / "model", options.size * _MB)
        kserve = _kserve_python()
        for kind in options.only.split(","):
            store_server = _start(kind, root, servers)
            store_server.fill("bench", _below(files))
            _compare(store_server, store_server.port, files, options, kserve, "")
            _compare_far(store_server, files, options, kserve)


def _below(files: Files) -> Mapping[str, bytes]:
    return Files(files.root.parent, tuple(f"model/{name}" for name in files))


def _make(root: Path, size: int) -> Files:
    """Two large shards, a middling file, and many small ones, of bytes that cannot be packed."""
    shares = {
        "model-00001-of-00002.safetensors": 0.5,
        "model-00002-of-00002.safetensors": 0.35,
        "a/extra.safetensors": 0.1,
    }
    shares |= {f"assets/{number:02}.json": 0.05 / 40 for number in range(40)}
    for name, share in shares.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            left = int(size * share)
            while left:
                left -= file.write(os.urandom(min(left, _MB)))
    return Files(root, tuple(shares))


def _start(kind: str, root: Path, servers: ExitStack) -> StoreServer:
    from storage import fake_hub, store_servers
    from storage.servers import gcs, s3, web

    place = root / kind
    place.mkdir()
    if kind == "s3":
        server = servers.enter_context(s3.seaweedfs(place))
        return replace(store_servers.of_s3(kind, server), fill=partial(_upload, server))
    if kind == "gs":
        return store_servers.of_gcs(servers.enter_context(gcs.fake_gcs_server(place)))
    if kind == "http":
        start = web.nginx if shutil.which("nginx") else web.own
        return store_servers.of_web(kind, servers.enter_context(start(place)))
    hub = servers.enter_context(fake_hub.serving())
    return replace(store_servers.of_hub(hub), fill=partial(_publish, hub))


def _publish(hub: Hub, root: str, files: Mapping[str, bytes]) -> None:
    """Put files into a model of the hub, under a commit that costs no look at a gigabyte."""
    repository = hub.repository(f"owner/{root}")
    repository.commits["0" * 40] = {name.removeprefix("model/"): data for name, data in files.items()}
    repository.branches["main"] = "0" * 40


def _upload(server: S3Server, root: str, files: Mapping[str, bytes]) -> None:
    """Put files as everyone's tools do: large ones in parts, so that there is no MD5 of them."""
    from storage.servers import s3

    for name, data in files.items():
        server.client.upload_fileobj(io.BytesIO(data), s3.PRIVATE, f"{root}/{name}")


def _compare_far(store_server: StoreServer, files: Files, options: argparse.Namespace, kserve: Path | str) -> None:
    """The same from a server that is 20 ms away."""
    from faultproxy import Fault, FaultProxy

    with FaultProxy(store_server.port) as proxy:
        proxy.set(Fault("latency", seconds=_LATENCY_SECONDS))
        _compare(store_server, proxy.port, files, options, kserve, f", {_LATENCY_SECONDS * 1000:.0f} ms away")


def _compare(
    store_server: StoreServer, port: int, files: Files, options: argparse.Namespace, kserve: Path | str, where: str
) -> None:
    place = _place(store_server, port, files) | {"transfer": options.transfer}
    size = sum((files.root / name).stat().st_size for name in files)
    print(f"\n{store_server.kind}{where}: {len(files)} files, {size / _MB:.0f} MB, best of {options.rounds}")
    print(f"{'':20}{'s':>8}{'MB/s':>8}{'CPU s':>8}{'peak MiB':>10}{'time':>8}{'memory':>8}{'verified':>10}  (ours = 1)")
    ours = None
    for name in ("ours", *PEERS[store_server.kind]):
        result = _best(name, place, size, options.rounds, kserve)
        if result.fault:
            print(f"{name:20}skipped: {result.fault}", flush=True)
            continue
        ours = ours or result
        print(
            f"{name:20}{result.seconds:8.2f}{size / _MB / result.seconds:8.0f}"
            f"{result.processor:8.2f}{result.peak / 2**20:10.0f}"
            f"{result.seconds / ours.seconds:8.2f}{result.peak / ours.peak:8.2f}"
            f"{result.verified / ours.seconds:10.2f}",
            flush=True,
        )


def _place(store_server: StoreServer, port: int, files: Files) -> dict[str, object]:
    from storage.servers import s3

    path = "bench" if store_server.kind == "hf" else "bench/model"
    uri, credentials = store_server.locate(f"{path}/" if store_server.kind == "http" else path, port)
    return {
        "uri": uri,
        "credentials": credentials,
        "path": uri.partition("://")[2],
        "endpoint": f"http://127.0.0.1:{port}",
        "key": s3.READER[0],
        "secret": s3.READER[1],
        "names": list(files),
    }


def _best(name: str, place: Mapping[str, object], size: int, rounds: int, kserve: Path | str) -> Result:
    if name == "kserve" and isinstance(kserve, str):
        return Result(name, fault=kserve)
    python = kserve if name == "kserve" else sys.executable
    runs = []
    for _ in range(rounds):
        run = _run(str(python), name, place, size)
        if run.fault:
            return run
        runs.append(run)
    fastest = min(runs, key=lambda run: run.seconds)
    return replace(fastest, peak=max(run.peak for run in runs))


def _run(python: str, name: str, place: Mapping[str, object], size: int) -> Result:
    with tempfile.TemporaryDirectory() as target:
        command = [python, str(_CONTENDERS), name, json.dumps({**place, "target": f"{target}/model"})]
        (Path(target) / "model").mkdir()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS, env=_environment(place)
            )
        except subprocess.TimeoutExpired:
            return Result(name, fault=f"not done in {_LONGEST_SECONDS} s")
        if done.returncode:
            return Result(name, fault=(done.stderr.strip().splitlines() or ["failed"])[-1][:200])
        found = sum(
            {path.stat().st_ino: path.stat().st_size for path in Path(target).rglob("*") if path.is_file()}.values()
        )
        if found < size:
            return Result(name, fault=f"it brought {found:,} of {size:,} bytes")
        facts = json.loads(done.stdout.strip().splitlines()[-1])
        return Result(name, **facts)


def _environment(place: Mapping[str, object]) -> dict[str, str]:
    """What each contender hears through its environment."""
    endpoint = str(place["endpoint"])
    foreign = ("AWS_", "GOOGLE_", "HF_", "HUGGING")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "AWS_ACCESS_KEY_ID": str(place["key"]),
        "AWS_SECRET_ACCESS_KEY": str(place["secret"]),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "STORAGE_EMULATOR_HOST": endpoint,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONWARNINGS": "ignore",
    }


def _kserve_python() -> Path | str:
    """The interpreter of an environment with KServe's storage initializer, made once; or why there is none."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance-bench/kserve-storage"
    python = home / "bin/python"
    if python.exists():
        return python
    uv = Path(sys.executable).with_name("uv")
    try:
        for words in (
            ("venv", "--python", "3.11", str(home)),
            ("pip", "install", "--python", str(python), "kserve-storage"),
        ):
            subprocess.run([str(uv), *words, "--quiet"], capture_output=True, text=True, check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(home, ignore_errors=True)
        return f"cannot be installed: {getattr(error, 'stderr', None) or error}"[:200]
    return python


if __name__ == "__main__":
    main()
