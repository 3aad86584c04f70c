"""
The protocol's real clients against the appliance, and against the servers they were made for: one matrix.

Clients and servers live in environments of their own, for they pin what we do not; the first run makes them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served import free_port, until

VISITORS = Path(__file__).parent / "visitors"
DOUBLES = Path(__file__).parent.parent / "inference_doubles.py"

Matrix = Mapping[str, str]


def _environment(cache: Path, *packages: str) -> Path:
    """
    The Python of an environment with these packages; skips where it cannot be made.
    """
    folder, uv = cache / "venv", [sys.executable, "-m", "uv"]
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


@pytest.fixture(scope="session")
def visitors(pytestconfig: pytest.Config) -> Path:
    """
    The Python of KServe and of tritonclient.
    """
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("oip-clients")
    return _environment(folder, "kserve==0.21.0", "tritonclient[http,grpc]==2.73.0")


@contextmanager
def _serving(log: Path, command: Callable[[int, int], list[str | Path]], ready: str) -> Iterator[tuple[int, int]]:
    port, grpc_port = free_port(), free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(command(port, grpc_port), stdout=output, stderr=output)
    try:
        until(lambda: _is_ready(f"http://127.0.0.1:{port}{ready}"), 120, log.read_text)
        yield port, grpc_port
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def _matrix(python: Path, ports: tuple[int, int]) -> Matrix:
    shown: dict[str, str] = {}
    for program in ("triton_client.py", "kserve_client.py"):
        words: list[str | Path] = [python, VISITORS / program, *map(str, ports), "echo"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        shown |= json.loads(done.stdout.splitlines()[-1])
    return shown


@pytest.mark.slow
def test_every_row_of_the_matrix_is_ok(visitors: Path, tmp_path: Path) -> None:
    """
    Whatever tritonclient and KServe's clients can ask of a model of tensors.
    """

    def command(port: int, grpc_port: int) -> list[str | Path]:
        return [sys.executable, DOUBLES, f"port={port}", f"grpc_port={grpc_port}", "host=127.0.0.1"]

    with _serving(tmp_path / "log", command, "/v2/health/ready") as ports:
        matrix = _matrix(visitors, ports)

    assert len(matrix) == 18
    assert {name: said for name, said in matrix.items() if said != "ok"} == {}


@pytest.mark.slow
def test_the_matrix_tells_servers_apart(visitors: Path, tmp_path: Path) -> None:
    """
    KServe's own server answers its own clients, and not all that tritonclient sends: the rows are no formality.
    """

    def command(port: int, grpc_port: int) -> list[str | Path]:
        return [visitors, VISITORS / "kserve_echo.py", str(port), str(grpc_port)]

    with _serving(tmp_path / "log", command, "/v2/models/echo/ready") as ports:
        matrix = _matrix(visitors, ports)

    good = {name for name, said in matrix.items() if said == "ok"}
    assert {"kserve_rest_json", "kserve_rest_binary", "kserve_grpc", "http_infer_binary"} <= good
    assert {"http_infer_json", "http_gzip", "grpc_infer", "http_config_statistics_index"}.isdisjoint(good)
