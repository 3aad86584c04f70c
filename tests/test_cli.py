"""Examples, schemas and progress on the command line; `contract/test_cli.py` has what each command prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from served import environment

pytestmark = pytest.mark.contract

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))


def _run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(**variables),
    )


def test_every_example_is_valid_and_opens_with_its_schema() -> None:
    """`validate` finds nothing, and editors find the schema."""
    done = _run("validate", *map(str, EXAMPLES), APPLIANCE_CACHE="", ASSISTANT_KEY="x" * 32)
    first = {example.name: example.read_text().splitlines()[0] for example in EXAMPLES}

    assert done.returncode == 0, done.stdout
    assert first == {
        example.name: "# yaml-language-server: $schema=../schemas/appliance.schema.json" for example in EXAMPLES
    }


def test_a_schema_is_printed_whole_or_for_a_class() -> None:
    """`schema` prints the file's schema, `schema generative` that of one class."""
    whole, one = json.loads(_run("schema").stdout), json.loads(_run("schema", "generative").stdout)

    assert "models" in whole["properties"]
    assert "chat_template" in one["properties"]


def test_smoke_fails_with_the_reason(tmp_path: Path) -> None:
    """A model that cannot load fails the smoke test by its reason."""
    file = tmp_path / "config.yaml"
    file.write_text(f"models: [{{name: a, class: generative, storage: {{uri: {tmp_path}/absent}}}}]\n")

    done = _run("smoke", str(file))

    assert done.returncode == 1
    assert "a is failed" in done.stdout
    assert "no such file" in done.stderr
