"""One appliance for all tests that look at what it tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from proxy_process import ProxyProcess, write_config
from upstreams import Upstream


@pytest.fixture(scope="module")
def upstream_server() -> Iterator[Upstream]:
    """The upstream behind it."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def plain(upstream_server: Upstream) -> Iterator[Upstream]:
    """The same, well-behaved before and after the test."""
    upstream_server.reset()
    yield upstream_server
    upstream_server.reset()


@pytest.fixture(scope="module")
def proxy_server(upstream_server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """The appliance."""
    folder = tmp_path_factory.mktemp("watched")
    file = write_config(folder, upstream_server, {})
    server = ProxyProcess(file, folder / "server.log").wait_until_ready(60)
    yield server
    assert server.stop() == 0, server.log_tail()
