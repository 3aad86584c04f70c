"""The distribution that contains this package: its version, and the commands that install its extras."""

from __future__ import annotations

from functools import cache
from importlib import metadata

NAME = "model-appliance"
"""The name in package indexes; the module and the command are `appliance`."""


@cache
def version() -> str:
    """Return the installed version."""
    return metadata.version(NAME)


def install_command(extra: str) -> str:
    """Return the shell command that installs an extra into the active virtual environment."""
    if extra == "cpu":
        # vLLM for CPUs needs builds of torch that only PyTorch's own index has; uv knows it by name, pip does not.
        return f"pip install uv && uv pip install --torch-backend cpu '{NAME}[cpu]'"
    return f"pip install '{NAME}[{extra}]'"
