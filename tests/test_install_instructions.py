"""Every install command that we print or document installs this distribution, with extras that exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from distributions import ROOT, Distributions

from appliance.core.distribution import NAME, install_command

pytestmark = pytest.mark.slow

_COMMAND = re.compile(r"\b(?:pip|pipx|uv tool) install ([^`\n&|#\"]+)")
_REQUIREMENT = re.compile(r"[A-Za-z][\w.-]*(\[[\w,-]+\])?([=<>~].*)?")
_OPTIONS_WITH_VALUE = {"--torch-backend", "--find-links", "--python", "--target"}
# The errors whose second argument is an extra.
_ERRORS = {"MissingExtraError", "require_package"}
_OFFLINE = re.compile("error sending request|dns error|[Cc]ould not connect|Failed to fetch")


def _texts() -> Iterator[tuple[str, str]]:
    """What users read: the pages, the examples, the source with its help and errors, and the published schemas."""
    patterns = (
        "*.md",
        "docs/**/*.md",
        "examples/**/*.yaml",
        "examples/**/*.py",
        "appliance/**/*.py",
        "schemas/*.json",
        "Containerfile",
    )
    for pattern in patterns:
        for file in sorted(ROOT.glob(pattern)):
            yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")


def _extras_of_errors() -> Mapping[str, str]:
    """Each extra that an error names, with a file that does."""
    found: dict[str, str] = {}
    for file in (ROOT / "appliance").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in _ERRORS and len(node.args) > 1:
                texts = [each.value for each in ast.walk(node.args[1]) if isinstance(each, ast.Constant)]
                found |= {text: str(file.relative_to(ROOT)) for text in texts if isinstance(text, str)}
    return found


def _requirements(command: str) -> Iterator[str]:
    """The requirements among the arguments of an install command, up to the first word that is prose."""
    words = iter(word.strip("'") for word in command.split())
    for word in words:
        if word in _OPTIONS_WITH_VALUE:
            next(words, None)
        elif _REQUIREMENT.fullmatch(word):
            yield word
        elif not word.startswith("-"):
            return


def _documented() -> Mapping[str, str]:
    """Each requirement that a text or an error asks to install, with its place."""
    found: dict[str, str] = {}
    for name, text in _texts():
        for command in _COMMAND.findall(text):
            if "{" not in command:
                found |= dict.fromkeys(_requirements(command), name)
    for extra, name in _extras_of_errors().items():
        for command in _COMMAND.findall(install_command(extra)):
            found |= dict.fromkeys(_requirements(command), name)
    return found


def test_no_text_installs_the_distribution_of_another_project() -> None:
    """`appliance` in the public index is somebody else's."""
    foreign = [name for name, text in _texts() if re.search(r"(?<!model-)\bappliance\[[a-z]", text)]
    foreign += [name for requirement, name in _documented().items() if re.match(r"appliance\b", requirement)]

    assert foreign == []


def test_each_extra_that_is_named_exists(distributions: Distributions) -> None:
    """In errors, help, pages and examples."""
    ours = [each.partition("[")[2].strip("]") for each in _documented() if each.startswith(f"{NAME}[")]
    named = {extra for extras in ours for extra in extras.split(",")}

    assert {"s3", "grpc", "cpu", "gpu", "ray", "tls"} <= named
    assert named <= set(distributions.extras)


@pytest.mark.parametrize("engine", ["none", "cpu", "gpu"])
def test_the_install_commands_can_be_resolved(distributions: Distributions, tmp_path: Path, engine: str) -> None:
    """With the wheel of this checkout, and the index for everything else; the two engines exclude each other."""
    wanted = [each for each in sorted(_documented()) if _engine_of(each) == engine]
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    install = [*uv, "pip", "install", "--dry-run", "--python", str(tmp_path / "venv/bin/python")]
    torch = _torch() if engine == "cpu" else ()
    command = [*install, "--find-links", str(distributions.wheel.parent), *torch, *wanted]

    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if _OFFLINE.search(done.stderr):
        pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")

    assert wanted
    assert done.returncode == 0, done.stderr
    assert "does not have an extra" not in done.stderr


def _engine_of(requirement: str) -> str:
    """Return which build of vLLM a requirement installs."""
    extras = requirement.partition("[")[2].strip("]").split(",")
    return next((engine for engine in ("cpu", "gpu") if engine in extras), "none")


def _torch() -> Sequence[str]:
    """Return where torch for CPUs comes from: the directory of wheels that this machine has, or PyTorch's index."""
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    return ("--find-links", links) if links else ("--torch-backend", "cpu")
