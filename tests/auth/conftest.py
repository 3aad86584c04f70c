"""An application that asks for keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from access_doubles import Closed, closed_config


@pytest.fixture(scope="package")
async def closed() -> AsyncGenerator[Closed]:
    """One whose models are ready, for all tests that change nothing."""
    async with Closed(closed_config(admin=True)) as client:
        await client.until_ready()
        yield client
        await client.manager.stop()


@pytest.fixture
async def fresh() -> AsyncGenerator[Closed]:
    """One of its own, which a test may change."""
    async with Closed(closed_config(admin=True)) as client:
        await client.until_ready()
        yield client
        await client.manager.stop()
