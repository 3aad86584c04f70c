"""The documentation holds: its YAML is valid, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import environment

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: [^\n]*)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# What a part of a file is validated with.
_MODEL = "models: [{name: smollm2, class: proxy, upstreams: [{url: 'http://localhost:1'}]}]\n"


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language in a page, without those that are a file of the repository."""
    found = [text for name, text in BLOCK.findall(page.read_text()) if name == language]
    return [text for text in found if not text.startswith("--8<--")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_config_validates(page: Path, tmp_path: Path) -> None:
    """What a reader copies is a valid file, alone or below a model."""
    texts = blocks(page, "yaml")
    for number, text in enumerate(texts):
        config = text if re.search(r"^models:", text, re.MULTILINE) else _MODEL + text
        (tmp_path / f"{number}.yaml").write_text(config)
    if not texts:
        return

    done = subprocess.run(
        [sys.executable, "-m", "appliance", "validate", "--without-secrets", *map(str, tmp_path.iterdir())],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_every_example_is_shown() -> None:
    """The page of examples has each file of the folder."""
    shown = set(re.findall(r'^--8<-- "examples/([\w-]+\.yaml)"', (ROOT / "docs/examples.md").read_text(), re.MULTILINE))

    assert shown == {path.name for path in (ROOT / "examples").glob("*.yaml")}
