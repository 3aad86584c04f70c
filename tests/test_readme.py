"""The README keeps its word: its YAML is the example, its command is what CI runs, its links lead to files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_it_is_short() -> None:
    """Everything else is a page of the docs."""
    assert len(README.encode()) <= 8_000


def test_its_yaml_is_the_example() -> None:
    """What a reader sees is what `just serve examples/chat.yaml` serves."""
    (text,) = _blocks("yaml")
    example = YAML(typ="safe").load((ROOT / "examples/chat.yaml").read_text())

    assert YAML(typ="safe").load(text)["models"] == example["models"]


def test_ci_runs_its_test_command() -> None:
    """CI does what the reader is told to do, and no more."""
    commands = "\n".join(_blocks("sh")).splitlines()
    test_command = next(line for line in commands if line.endswith("just test"))

    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == test_command


def test_its_links_lead_to_files() -> None:
    """Links within the repository exist."""
    links = {link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")}

    assert [link for link in sorted(links) if not (ROOT / link).exists()] == []


def question() -> dict[str, object]:
    """The body of the README's curl."""
    curl = next(block for block in _blocks("sh") if block.startswith("curl"))
    body: dict[str, object] = json.loads(re.search(r"-d '(.*)'", curl, re.DOTALL)[1])  # type: ignore[index]
    return body


def answer() -> str:
    """The answer it shows."""
    return _blocks("text")[-1].strip()
