"""An application with a model of each kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from inference_doubles import InferenceClient, operation_doubles


@pytest.fixture(scope="package")
async def client() -> AsyncGenerator[InferenceClient]:
    """A client of it, once every model is ready."""
    async with InferenceClient(operation_doubles()) as client:
        yield await client.wait_until_ready()
        await client.manager.stop()


@pytest.fixture
async def fresh() -> AsyncGenerator[InferenceClient]:
    """One of its own, whose models a test may break."""
    async with InferenceClient(operation_doubles()) as client:
        yield await client.wait_until_ready()
        await client.manager.stop()
