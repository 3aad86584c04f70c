"""One appliance for all tests that look at what it tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from proxy_process import ProxyProcess, write_config
from upstreams import Upstream


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    """The upstream behind it."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def plain(behind: Upstream) -> Iterator[Upstream]:
    """The same, well-behaved before and after the test."""
    behind.reset()
    yield behind
    behind.reset()


@pytest.fixture(scope="module")
def watched(behind: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """The appliance."""
    folder = tmp_path_factory.mktemp("watched")
    file = write_config(folder, behind, {})
    server = ProxyProcess(file, folder / "server.log").wait_until_ready(60)
    yield server
    assert server.stop() == 0, server.log_tail()
