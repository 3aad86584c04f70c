"""
One real engine for the whole run; tests that end a server start their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from faultproxy import FaultProxy
from served import Served
from upstreams import Upstream

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

    def start(*overrides: str, file: Path = chat_file, prefix: Sequence[str] = (), host: str = "127.0.0.1") -> Served:
        log = tmp_path / f"server-{len(servers)}.log"
        servers.append(Served(file, log, *overrides, prefix=prefix, host=host))
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


@pytest.fixture
def upstreams() -> Iterator[Callable[[], Upstream]]:
    """
    Starts well-behaved upstreams, until the test tells them otherwise.
    """
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Upstream())


@pytest.fixture
def upstream(upstreams: Callable[[], Upstream]) -> Upstream:
    """
    One upstream.
    """
    return upstreams()


@pytest.fixture
def fault_proxies() -> Iterator[Callable[[int], FaultProxy]]:
    """
    Puts fault proxies before ports.
    """
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(FaultProxy(port))
