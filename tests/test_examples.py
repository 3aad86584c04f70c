"""
The examples, started for real where this machine can run them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# What an example needs that a plain machine lacks.
NEEDS = {
    "chat-hf.yaml": "a hub on the network",
    "chat-two-gpus.yaml": "two GPUs",
    "expert-parallel.yaml": "eight GPUs",
    "rerank.yaml": "a hub on the network",
    "two-nodes-ray.yaml": "a Ray cluster with sixteen GPUs",
    "storage.yaml": "object stores on the network",
}

# What differs from another in a way that has tests of its own.
SELDOM = frozenset(
    {"adapter-chat-over-completions.yaml", "chat-custom-template.yaml", "data-parallel.yaml", "limits.yaml"}
)

NAMES = frozenset(path.name for path in EXAMPLES.glob("*.yaml"))
FORWARDING = frozenset(
    name
    for name in NAMES
    if name.startswith("proxy") or name in {"adapter-http.yaml", "observability.yaml", "secure.yaml"}
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.long] * (each in SELDOM)) for each in sorted(NAMES - FORWARDING)],
)
def test_an_example_keeps_its_promises(name: str) -> None:
    """
    `smoke` starts it, asks what `expect:` promises, and stops it with exit code 0.
    """
    if name in NEEDS:
        pytest.skip(f"needs {NEEDS[name]}")
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "smoke", str(EXAMPLES / name), "--timeout", "280"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise held" in done.stdout


@pytest.mark.parametrize("name", sorted(FORWARDING))
def test_an_example_that_forwards_keeps_its_promises(name: str) -> None:
    """
    Beside an upstream it does what it says, and needs no engine for it.
    """
    smoke = [sys.executable, "-m", "appliance", "smoke", str(EXAMPLES / name), "--timeout", "60"]
    beside = [sys.executable, str(Path(__file__).parent / "with_upstreams.py")]
    variables = {**os.environ, "ASSISTANT_KEY": "sk-of-the-example-alone"}
    done = subprocess.run([*beside, *smoke], capture_output=True, text=True, check=False, env=variables)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise held" in done.stdout
