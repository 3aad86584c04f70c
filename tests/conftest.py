"""
One real engine for the whole run; tests that end a server start their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from served import Served

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def chat_file() -> Path:
    """
    The embedded default: SmolLM2 from a wheel.
    """
    return EXAMPLES / "chat.yaml"


@pytest.fixture
def serve(tmp_path: Path, chat_file: Path) -> Iterator[Callable[..., Served]]:
    """
    Starts servers of the test's own, and ends whatever is left of them.
    """
    servers: list[Served] = []

    def start(*overrides: str, file: Path = chat_file) -> Served:
        servers.append(Served(file, tmp_path / f"server-{len(servers)}.log", *overrides))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(30)


@pytest.fixture
def offspring() -> Callable[[], list[psutil.Process]]:
    """
    The processes that this test started, and theirs, as far as they still run; the shared server is not among them.
    """
    me = psutil.Process()
    before = {*me.children(recursive=True)}
    return lambda: [process for process in me.children(recursive=True) if process not in before]
