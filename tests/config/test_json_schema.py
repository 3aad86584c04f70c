"""The committed JSON Schemas: up to date, described, and the same rules for an editor as for us."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from appliance.config import schema_of
from appliance.config.engine import LOAD_FORMATS, OWNED, EngineConfig
from appliance.config.json_schema import ENGINE_NAME, REFER, ROOT_NAME, directory, engine_schema, validation_schema
from appliance.config.models import MODEL_CONFIGS
from appliance.config.write_schemas import files, write_or_check

Schema = dict[str, Any]
COMMITTED = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in directory().glob("*.json")}


def properties(schema: object) -> Iterator[tuple[str, Schema]]:
    """Every property of the schema at any depth, by its name; conditions and free keys are none."""
    if isinstance(schema, list):
        for item in schema:
            yield from properties(item)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("properties"), dict):
        yield from schema["properties"].items()
    for keyword, below in schema.items():
        if keyword != "if":
            yield from properties(below)


def parts(schema: object) -> Iterator[Schema]:
    """The schema and every schema in it."""
    if isinstance(schema, dict):
        yield schema
    for below in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from parts(below)


@pytest.mark.parametrize("name", files())
def test_a_committed_schema_is_what_the_classes_say(name: str) -> None:
    """The committed file is what the generator makes of the config's classes; `just schemas` writes it."""
    assert (directory() / name).read_text(encoding="utf-8") == files()[name]


def test_the_check_names_a_stale_schema_and_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """The check names the file and the command to run, and fails."""
    status = write_or_check({"appliance.schema.json": "{}"}, ["--check"])

    assert status == 1
    assert capsys.readouterr().err.endswith("appliance.schema.json is out of date; run: just schemas\n")


@pytest.mark.parametrize("schema", COMMITTED.values(), ids=COMMITTED)
def test_a_schema_is_a_schema(schema: Schema) -> None:
    """Each file holds to the dialect that it names."""
    Draft202012Validator.check_schema(schema)

    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("name", COMMITTED)
def test_a_schema_is_known_by_its_file_name(name: str) -> None:
    """The id is the file's name, so that references between the files work beside each other and in an editor."""
    assert COMMITTED[name]["$id"] == name


@pytest.mark.parametrize("schema", COMMITTED.values(), ids=COMMITTED)
def test_every_property_is_described(schema: Schema) -> None:
    """
    Each key has the text an editor shows for it, its own or its section's, and no title that only repeats the key.
    """
    for name, found in properties(schema):
        section: Schema = next((choice for choice in found.get("anyOf", [found]) if "$ref" in choice), {})
        config = schema.get("$defs", {}).get(str(section.get("$ref")).rpartition("/")[2], {})

        assert found.get("description") or config.get("description"), name
        assert "title" not in found, name


@pytest.mark.parametrize("schema", [COMMITTED[name] for name in COMMITTED if name != ENGINE_NAME])
def test_every_pattern_is_said_in_words(schema: Schema) -> None:
    """Our errors and those of editors have the words of `patternErrorMessage`, and no regular expression."""
    patterns = [part for part in parts(schema) if isinstance(part.get("pattern"), str)]

    assert [part for part in patterns if not part.get("patternErrorMessage", "").startswith("must be ")] == []


def test_there_is_a_schema_of_each_model_class() -> None:
    """Every model class has its own file, which describes one entry of `models:`."""
    assert {f"{name}.schema.json" for name in MODEL_CONFIGS} <= set(COMMITTED)
    for name in MODEL_CONFIGS:
        assert schema_of(name)["properties"]["class"]["const"] == name


def test_an_editor_finds_what_we_find() -> None:
    """The files alone, without our code, refuse an unknown key, a wrong class and a wrong engine argument."""
    registry = Registry().with_resources([(name, Resource.from_contents(schema)) for name, schema in COMMITTED.items()])
    validator = Draft202012Validator(COMMITTED["appliance.schema.json"], registry=registry)
    model = {"name": "a", "class": "generative", "storage": {"uri": "file:///a"}}

    assert validator.is_valid({"models": [model], "x-free": 1})
    assert not validator.is_valid({"models": [model], "free": 1})
    assert not validator.is_valid({"models": [model | {"class": "generativ"}]})
    assert validator.is_valid({"models": [model | {"engine": {"args": {"block_size": 16}}}]})
    assert not validator.is_valid({"models": [model | {"engine": {"args": {"block_size": "16"}}}]})


def test_engine_arguments_that_the_config_owns_are_not_among_vllms() -> None:
    """What has a place of its own in the config can't be said a second time."""
    arguments = COMMITTED["vllm-engine.schema.json"]["properties"]

    assert not OWNED.keys() & arguments.keys()
    assert not EngineConfig.model_fields.keys() & arguments.keys()


def test_no_load_format_unpickles() -> None:
    """Weights are read as safetensors or made up; formats that may run code can't be chosen."""
    formats = COMMITTED["vllm-engine.schema.json"]["properties"]["load_format"]["anyOf"][0]["enum"]

    assert formats == list(LOAD_FORMATS)
    assert not {"auto", "hf", "pt", "npcache", "tensorizer"} & set(formats)


def test_the_generator_runs_as_a_command(tmp_path: Path) -> None:
    """`python -m appliance.config.write_schemas --check` is quiet and succeeds where all is up to date."""
    command = [sys.executable, "-W", "error", "-m", "appliance.config.write_schemas", "--check"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_values_are_validated_without_references() -> None:
    """They are resolved before; what is left of one in a number is an error."""
    assert REFER in json.loads((directory() / ROOT_NAME).read_text())["properties"]["server"]["anyOf"]
    assert json.dumps(REFER) not in json.dumps([validation_schema(), engine_schema()])
