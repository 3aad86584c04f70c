"""
The examples, started for real where this machine can run them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# What an example needs that a plain machine lacks.
NEEDS = {"chat-hf.yaml": "a hub on the network", "chat-two-gpus.yaml": "two GPUs"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("chat*.yaml")))
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
