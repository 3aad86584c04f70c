"""Podman, where there is one, and what is asked of a container from the inside: it needs no network for that."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

IMAGE = "localhost/appliance:cpu"
"""As `VARIANT=cpu just image` tags it; the manifests name it too."""

PROXY_IMAGE = "localhost/appliance:proxy"
"""The one for proxies and adapters, without an engine."""

# Runs in the container: the image has no curl.
_ASK = """
import sys, urllib.error, urllib.request as http
port, path, body = sys.argv[1:]
request = http.Request(f"http://127.0.0.1:{port}{path}", body.encode() or None, {"Content-Type": "application/json"})
try:
    answer = http.urlopen(request, timeout=60)
except urllib.error.HTTPError as error:
    answer = error
sys.stdout.write(f"{answer.status} {answer.read().decode()}")
"""


@dataclass(frozen=True)
class Podman:
    """The command, with what must come before it."""

    prefix: tuple[str, ...] = ()

    def run(self, *words: str, stdin: bytes | None = None) -> str:
        """What a command of podman prints; a failure is one of the test."""
        done = subprocess.run([*self.prefix, "podman", *words], input=stdin, capture_output=True, timeout=300)
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.stderr.decode()[-2000:]}"
        return done.stdout.decode().strip()

    def ask(self, container: str, path: str, body: object = None, port: int = 8080) -> tuple[int, Any]:
        """Status and JSON body of a request from inside; status 0 where nobody listens, or there is no container."""
        words = ["exec", container, "python", "-c", _ASK, str(port), path, "" if body is None else json.dumps(body)]
        done = subprocess.run([*self.prefix, "podman", *words], capture_output=True, text=True, timeout=120)
        status, _, said = done.stdout.partition(" ")
        return (int(status), json.loads(said)) if done.returncode == 0 else (0, None)

    def inspect(self, container: str) -> Any:
        """Everything podman knows of a container."""
        return json.loads(self.run("inspect", container))[0]

    def log(self, container: str) -> str:
        """The end of a container's log, for a failure's message."""
        done = subprocess.run(["podman", "logs", container], capture_output=True, text=True, timeout=60)
        return (done.stdout + done.stderr)[-4000:]


def require(image: str = IMAGE) -> None:
    """Skip where there is no podman, or no such image."""
    if shutil.which("podman") is None:
        pytest.skip("needs podman")
    if subprocess.run(["podman", "image", "exists", image], timeout=60).returncode:
        pytest.skip(f"needs the image {image}: just test-image")


@contextlib.contextmanager
def own_network() -> Iterator[Podman]:
    """
    Podman in a network of its own where root can make one: its bridges, ports and packet filters end with the test.
    """
    if os.geteuid():
        yield Podman()
        return
    words = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 3600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"up\n"
            yield Podman(("nsenter", f"--net=/proc/{holder.pid}/ns/net"))
        finally:
            holder.kill()
