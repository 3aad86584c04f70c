"""An application that asks for keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from auth_doubles import AppClient, config_with_keys


@pytest.fixture(scope="package")
async def closed() -> AsyncGenerator[AppClient]:
    """One whose models are ready, for all tests that change nothing."""
    async with AppClient(config_with_keys(admin=True)) as client:
        await client.wait_until_ready()
        yield client
        await client.manager.stop()


@pytest.fixture
async def fresh() -> AsyncGenerator[AppClient]:
    """One of its own, which a test may change."""
    async with AppClient(config_with_keys(admin=True)) as client:
        await client.wait_until_ready()
        yield client
        await client.manager.stop()
