"""The examples, started for real where this machine can run them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from example_files import EXAMPLES, NAMES, NEEDS
from server_launcher import run_appliance
from server_process import ServerProcess, failed_expectations
from with_upstreams import example_upstreams

# What other tests start, and what differs from another example in a way that has tests of its own.
SELDOM = frozenset(
    {"adapter-chat-over-completions.yaml", "chat-custom-template.yaml", "data-parallel.yaml", "limits.yaml"}
    | {"agents.yaml", "batch.yaml", "chat.yaml", "embeddings.yaml", "rag.yaml"}
)

FORWARDING = frozenset(
    name
    for name in NAMES
    if name.startswith("proxy") or name in {"adapter-http.yaml", "fallback.yaml", "observability.yaml", "secure.yaml"}
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.long] * (each in SELDOM)) for each in sorted(NAMES - FORWARDING)],
)
def test_an_example_keeps_its_promises(name: str) -> None:
    """`smoke` starts it, asks what `expect:` promises, and stops it with exit code 0."""
    if name in NEEDS:
        pytest.skip(f"needs {NEEDS[name]}")
    done = run_appliance("smoke", EXAMPLES / name, "--timeout", "280")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "every check passed" in done.stdout


@pytest.mark.slow
def test_both_halves_of_retrieval_keep_their_promises(serve: Callable[..., ServerProcess]) -> None:
    """Two engines behind one port, as `smoke` asks them but for the start."""
    server = serve(file=EXAMPLES / "rag.yaml").wait_until_ready(280)

    assert failed_expectations(server, EXAMPLES / "rag.yaml") == []
    assert server.stop() == 0


@pytest.mark.parametrize("name", sorted(FORWARDING))
def test_an_example_that_forwards_keeps_its_promises(name: str) -> None:
    """Beside an upstream it does what it says, and needs no engine for it."""
    with example_upstreams() as variables:
        done = run_appliance("smoke", EXAMPLES / name, "--timeout", "60", variables={**os.environ, **variables})

    assert done.returncode == 0, done.stdout + done.stderr
    assert "every check passed" in done.stdout
