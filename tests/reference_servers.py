"""
Other people's servers and clients of the protocol, each in an environment of its own, for they pin what we do not.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest
from server_process import free_port, wait_until


@dataclass(frozen=True)
class Reference:
    """A server that answers on two ports of the loopback."""

    http: int
    grpc: int

    @property
    def url(self) -> str:
        """Where it answers HTTP."""
        return f"http://127.0.0.1:{self.http}"


def environment(config: pytest.Config, name: str, *packages: str) -> Path:
    """The Python of an environment with these packages, made once; skips where it cannot be made."""
    assert config.cache is not None
    cache, uv = config.cache.mkdir(name), [sys.executable, "-m", "uv"]
    folder = cache / "venv"
    with (cache / "lock").open("w") as lock:
        # Another run makes it for us, or waits for us.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "made").exists():
            commands = (
                [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
                [*uv, "pip", "install", "--quiet", "--python", str(folder / "bin/python"), *packages],
            )
            for command in commands:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"no environment for {', '.join(packages)}: {done.stderr[-300:]}")
            (cache / "made").touch()
    return folder / "bin/python"


def kserve_environment(config: pytest.Config) -> Path:
    """The Python of an environment with KServe, a client of Triton, and our versions of the predictors' frameworks."""
    frameworks = ("scikit-learn", "joblib", "numpy", "xgboost-cpu", "lightgbm")
    same = (f"{name}=={version(name)}" for name in frameworks)
    return environment(config, "kserve", "kserve==0.21.0", "tritonclient[http,grpc]==2.73.0", "kubernetes<36", *same)


@contextmanager
def serving(
    log: Path, words: Sequence[str | Path], ready: str, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Reference]:
    """A program that serves, once it answers at `ready`; ``{http}``, ``{grpc}`` and ``{more}`` become free ports."""
    ports = {name: str(free_port()) for name in ("http", "grpc", "more")}
    command = [str(word).format(**ports) for word in words]
    variables = {name: value.format(**ports) for name, value in settings.items()}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **variables})
    server = Reference(int(ports["http"]), int(ports["grpc"]))
    try:
        wait_until(lambda: _is_ready(server.url + ready), 120, log.read_text)
        yield server
    finally:
        # They would drain for seconds.
        process.kill()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
