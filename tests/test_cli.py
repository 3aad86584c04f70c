"""The command line as people meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from served import environment

pytestmark = pytest.mark.contract

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))
BROKEN = Path(__file__).parent / "broken"


def _run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(**variables),
    )


def test_help_names_every_verb_and_a_first_command() -> None:
    """A newcomer sees what there is and what to type first."""
    done = _run("--help")

    assert done.returncode == 0
    assert all(
        verb in done.stdout for verb in ("serve", "validate", "plan", "pull", "lock", "cache", "schema", "smoke")
    )
    assert "appliance serve examples/chat.yaml" in done.stdout


@pytest.mark.parametrize("verb", ["serve", "validate", "plan", "pull", "lock", "cache", "schema", "smoke"])
def test_every_verb_explains_itself(verb: str) -> None:
    """Each verb has a help of its own."""
    done = _run(verb, "--help")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


def test_the_version_is_told() -> None:
    """One line: name and version."""
    done = _run("--version")

    assert done.stdout.split() == ["appliance", "0.1.0"]


def test_every_example_is_valid_and_opens_with_its_schema() -> None:
    """`validate` finds nothing, and editors find the schema."""
    done = _run("validate", *map(str, EXAMPLES), APPLIANCE_CACHE="", ASSISTANT_KEY="x" * 32)
    first = {example.name: example.read_text().splitlines()[0] for example in EXAMPLES}

    assert done.returncode == 0, done.stdout
    assert first == {
        example.name: "# yaml-language-server: $schema=../schemas/appliance.schema.json" for example in EXAMPLES
    }


def test_problems_are_printed_for_people(tmp_path: Path) -> None:
    """Exit code 2, and FILE:LINE:COLUMN with a caret for each problem."""
    file = tmp_path / "config.yaml"
    file.write_text("models:\n  - name: a\n    class: generative\n    storge: {uri: /x}\nserver: {prt: 1}\n")

    done = _run("validate", str(file))

    assert done.returncode == 2
    assert (
        f'{file}:4:5: models[0].storge: unknown key; did you mean "storage"?\n      storge: {{uri: /x}}\n      ^'
        in done.stdout
    )
    assert f"{file}:5:10: server.prt" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_problems_are_printed_for_machines(tmp_path: Path) -> None:
    """`--format json` has every file with its problems, good ones included."""
    file = tmp_path / "config.yaml"
    file.write_text("models: []\n")

    done = _run("validate", str(file), str(EXAMPLES[0]), "--format", "json")
    bad, good = json.loads(done.stdout)

    assert done.returncode == 2
    assert (bad["valid"], bad["problems"][0]["line"], bad["problems"][0]["path"]) == (False, 1, "models")
    assert (good["valid"], good["problems"]) == (True, [])


@pytest.mark.parametrize("verb", ["serve", "pull", "lock", "smoke"])
def test_every_verb_refuses_a_bad_file_alike(verb: str) -> None:
    """Exit code 2 with the problems on standard error, before anything is started."""
    done = _run(verb, str(BROKEN / "unknown_keys.yaml"))

    assert done.returncode == 2
    assert "unknown key" in done.stderr
    assert "problems found" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_no_traceback(tmp_path: Path) -> None:
    """Exit code 2 and the name of the file."""
    done = _run("serve", str(tmp_path / "nothing.yaml"))

    assert done.returncode == 2
    assert "nothing.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_schema_is_printed_whole_or_for_a_class() -> None:
    """`schema` prints the file's schema, `schema generative` that of one class."""
    whole, one = json.loads(_run("schema").stdout), json.loads(_run("schema", "generative").stdout)

    assert "models" in whole["properties"]
    assert "chat_template" in one["properties"]


def test_pull_says_where_the_bytes_lie(tmp_path: Path) -> None:
    """A directory on disk is used in place, and named."""
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "config.yaml"
    file.write_text(f"models: [{{name: a, class: generative, storage: {{uri: {tmp_path}}}}}]\n")

    done = _run("pull", str(file))

    assert done.returncode == 0, done.stderr
    assert f"a model: {tmp_path}" in done.stdout


def test_pull_of_nothing_says_what_is_missing(tmp_path: Path) -> None:
    """Each fault of storage has an exit code of its own."""
    file = tmp_path / "config.yaml"
    file.write_text(f"models: [{{name: a, class: generative, storage: {{uri: {tmp_path}/absent}}}}]\n")

    done = _run("pull", str(file))

    assert done.returncode == 10
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr


def test_smoke_fails_with_the_reason(tmp_path: Path) -> None:
    """A model that cannot load fails the smoke test by its reason."""
    file = tmp_path / "config.yaml"
    file.write_text(f"models: [{{name: a, class: generative, storage: {{uri: {tmp_path}/absent}}}}]\n")

    done = _run("smoke", str(file))

    assert done.returncode == 1
    assert "a is failed" in done.stdout
    assert "no such file" in done.stderr
