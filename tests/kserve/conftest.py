"""Programs that were written for KServe, served by KServe and, with other imports, by us."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from reference_servers import Reference, kserve_environment, serving

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def kserve_python(pytestconfig: pytest.Config) -> Path:
    """The Python of an environment with KServe."""
    return kserve_environment(pytestconfig)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Reference]]:
    """Starts a program, whose only change is the package it imports from."""
    folder = tmp_path_factory.mktemp("kserve")
    with ExitStack() as stack:

        def start(python: Path | str, name: str, package: str, *words: str) -> Reference:
            program = folder / f"{package}-{name}"
            program.write_text((PROGRAMS / name).read_text().replace("from kserve", f"from {package}"))
            ports = ["--http_port={http}", "--grpc_port={grpc}", "--model_name=model"]
            log = folder / f"{program.stem}-{len([*folder.iterdir()])}.log"
            return stack.enter_context(serving(log, [python, program, *ports, *words], "/v2/models/model/ready"))

        yield start


@pytest.fixture(scope="session")
def theirs(start: Callable[..., Reference], kserve_python: Path) -> Reference:
    """The predictor on KServe's server."""
    return start(kserve_python, "predictor.py", "kserve")


@pytest.fixture(scope="session")
def ours(start: Callable[..., Reference]) -> Reference:
    """The predictor on ours."""
    return start(sys.executable, "predictor.py", "appliance.kserve")
