"""A bench run as `just bench` runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from server_process import environment

_TESTS = Path(__file__).parents[1]


def ran(name: str, *words: str, seconds: float = 280) -> str:
    """What the bench of this name prints, given these words; it must end well, and within so many seconds."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=_TESTS.parent,
        timeout=seconds,
        env=environment(PYTHONPATH=str(_TESTS)),
    )
    return done.stdout
