"""Scripted upstreams for the whole run, reset before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from upstreams import Upstream


@pytest.fixture(scope="session")
def _upstreams() -> Iterator[tuple[Upstream, ...]]:
    with Upstream() as one, Upstream() as two, Upstream() as three:
        yield one, two, three


@pytest.fixture
def upstreams(_upstreams: tuple[Upstream, ...]) -> tuple[Upstream, ...]:
    """Three scripted upstreams."""
    for each in _upstreams:
        each.reset()
    return _upstreams


@pytest.fixture
def upstream(upstreams: tuple[Upstream, ...]) -> Upstream:
    """The first scripted upstream."""
    return upstreams[0]
