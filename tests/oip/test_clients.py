"""The protocol's real clients against the appliance, and against the servers they were made for: one matrix.

Clients and servers live in environments of their own, for they pin what we do not; the first run makes them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from reference_servers import Reference, kserve_environment, serving

PROGRAMS = Path(__file__).parent / "programs"
DOUBLES = Path(__file__).parent.parent / "inference_doubles.py"

Matrix = Mapping[str, str]


@pytest.fixture(scope="session")
def client_python(pytestconfig: pytest.Config) -> Path:
    """The Python of KServe and of tritonclient."""
    return kserve_environment(pytestconfig)


def _matrix(python: Path, server: Reference) -> Matrix:
    shown: dict[str, str] = {}
    for program in ("triton_client.py", "kserve_client.py"):
        words: list[str | Path] = [python, PROGRAMS / program, str(server.http), str(server.grpc), "echo"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        shown |= json.loads(done.stdout.splitlines()[-1])
    return shown


@pytest.mark.slow
def test_each_client_feature_works(client_python: Path, tmp_path: Path) -> None:
    """Whatever tritonclient and KServe's clients can ask of a model of tensors."""
    words: list[str | Path] = [sys.executable, DOUBLES, "port={http}", "grpc_port={grpc}", "host=127.0.0.1"]
    with serving(tmp_path / "log", words, "/v2/health/ready") as server:
        matrix = _matrix(client_python, server)

    assert len(matrix) == 18
    assert {name: said for name, said in matrix.items() if said != "ok"} == {}


@pytest.mark.long
def test_other_servers_fail_some_features(client_python: Path, tmp_path: Path) -> None:
    """KServe's own server answers its own clients, and not all that tritonclient sends: the rows are no formality."""
    words: list[str | Path] = [client_python, PROGRAMS / "kserve_echo.py", "{http}", "{grpc}"]
    with serving(tmp_path / "log", words, "/v2/models/echo/ready") as server:
        matrix = _matrix(client_python, server)

    good = {name for name, said in matrix.items() if said == "ok"}
    assert {"kserve_rest_json", "kserve_rest_binary", "kserve_grpc", "http_infer_binary"} <= good
    assert {"http_infer_json", "http_gzip", "grpc_infer", "http_config_statistics_index"}.isdisjoint(good)
