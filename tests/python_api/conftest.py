"""Programs of users for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from python_api.program import Program
from server_process import free_port


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Program]]:
    """Starts programs, and ends whatever is left of them."""
    logs = tmp_path_factory.mktemp("programs")
    with ExitStack() as stack:

        def start(name: str, *words: str) -> Program:
            program = Program(name, logs / f"{free_port()}.log", *words)
            stack.callback(program.stop)
            return program

        yield start


@pytest.fixture(scope="session")
def chat(start: Callable[..., Program]) -> Program:
    """The chat model."""
    return start("chat.py").wait_until_ready(60)


@pytest.fixture(scope="session")
def embeddings(start: Callable[..., Program]) -> Program:
    """The embedding model."""
    return start("embeddings.py").wait_until_ready(60)
