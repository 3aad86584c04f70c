"""One appliance for all tests that look at what it tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from upstreams import Upstream
from watched import Watched, write


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
def watched(behind: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The appliance."""
    folder = tmp_path_factory.mktemp("watched")
    file = write(folder, behind, {})
    server = Watched(file, folder / "server.log").until_ready(60)
    yield server
    assert server.end() == 0, server.tail()
