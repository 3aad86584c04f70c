"""Examples, schemas and progress on the command line; `contract/test_cli.py` has what each command prints."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from server_launcher import run_appliance
from server_process import environment

pytestmark = pytest.mark.contract

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def _run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run_appliance(*words, variables=environment(**variables))


def test_every_example_is_valid_and_opens_with_its_schema() -> None:
    """`validate` finds nothing, and editors find the schema."""
    done = _run("validate", "--without-secrets", *map(str, EXAMPLES), ASSISTANT_KEY="x" * 32)
    first = {example.name: example.read_text().splitlines()[0] for example in EXAMPLES}

    assert done.returncode == 0, done.stdout
    assert first == {
        example.name: "# yaml-language-server: $schema=../schemas/appliance.schema.json" for example in EXAMPLES
    }


def test_a_file_is_checked_without_its_secrets(tmp_path: Path) -> None:
    """Values that cannot be resolved here are taken for valid and named; other problems are found, and exit with 2."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "models:\n"
        "  - {name: a, class: proxy, upstreams: [{url: '${env:NOWHERE}/v1', api_key: '${file:absent}'}]}\n"
        "  - {name: b, class: '${env:CLASS_}', storage: {uri: '${env:URI_}'}, layout: {nodes: {count: '${env:N_}'}}}\n"
        "server: {port: '${env:NO_PORT}', workers: '${env:NO_WORKERS}'}\n"
    )

    good = _run("validate", "--without-secrets", str(file))
    file.write_text(file.read_text().replace("port:", "prot:"))
    bad = _run("validate", "--without-secrets", str(file))

    assert good.returncode == 0, good.stdout
    verdict, *unchecked = good.stdout.splitlines()
    assert verdict == f"{file}: good"
    assert [line.partition(" ")[2].partition(":")[0] for line in unchecked] == [
        "models[0].upstreams[0].url",
        "models[0].upstreams[0].api_key",
        "models[1].class",
        "models[1].storage.uri",
        "models[1].layout.nodes.count",
        "server.port",
        "server.workers",
    ]
    assert unchecked[0].endswith("url: not checked: the environment variable NOWHERE is not set")
    assert bad.returncode == 2
    assert 'server.prot: unknown key; did you mean "port"?' in bad.stdout


def test_the_schemas_are_written_for_editors(tmp_path: Path) -> None:
    """All of them, into a new directory, so that one finds another, and only all of them."""
    folder = tmp_path / "new" / "schemas"

    done, refused = _run("schema", "--write", str(folder)), _run("schema", "proxy", "--write", str(folder))

    published = {path.name: path.read_bytes() for path in (EXAMPLES[0].parents[1] / "schemas").iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == published
    assert done.stderr.splitlines() == [f"{folder / name}: written" for name in sorted(published)]
    assert (refused.returncode, "leave out CLASS" in refused.stderr) == (2, True)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Without a traceback."""
    folder = tmp_path / "file" / "schemas"
    (tmp_path / "file").touch()

    done = _run("schema", "--write", str(folder))

    assert done.returncode == 2
    assert re.search(
        rf"^{tmp_path}/file/schemas/.*: cannot be written: .*; name another --write$", done.stderr, re.MULTILINE
    )


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
