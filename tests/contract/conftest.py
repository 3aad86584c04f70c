"""Servers of the suite and the option that writes its golden files anew.

Nothing here or in the tests imports the package but as its users do: a process, the command, HTTP and gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from contract.golden import Golden
from contract.server import Server
from upstreams import Upstream

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.contract)


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Golden:
    """The golden files."""
    return Golden(writes=pytestconfig.getoption("--golden"))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends whatever is left of them."""
    with ExitStack() as stack:

        def start(config: str, *overrides: str, grpc: bool = False, **variables: str) -> Server:
            folder = tmp_path_factory.mktemp("server")
            server = Server(FOLDER / "configs" / config, folder, *overrides, grpc=grpc, **variables)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="session")
def session_upstream() -> Iterator[Upstream]:
    """The upstream of the shared servers."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def open_server(start: Callable[..., Server], session_upstream: Upstream) -> Server:
    """A server without keys; all its models are ready but `gone` and `late`."""
    server = start("open.yaml", UPSTREAM=session_upstream.url, grpc=True)
    server.open_gate("answer")
    server.wait_until("late", "loading")
    server.wait_until("chatting", "ready")
    return server


@pytest.fixture(scope="session")
def keyed_server(start: Callable[..., Server]) -> Server:
    """A server with keys; `broken` failed to load and `gone` has no upstream."""
    server = start("keyed.yaml", grpc=True)
    for model, state in (("lengths", "ready"), ("broken", "failed"), ("gone", "unavailable")):
        server.wait_until(model, state)
    return server
