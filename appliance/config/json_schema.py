"""The committed JSON Schemas of the config: as they are published, and as values are validated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

Schema = Mapping[str, Any]  # Any: JSON

ROOT_NAME = "appliance.schema.json"
ENGINE_NAME = "vllm-engine.schema.json"

OPTIONS = "x-options"
"""The keyword in the schema of engine arguments that holds the options of `vllm serve`, those of its front end too."""

REFER = {"$ref": "#/$defs/Reference"}
"""In the published schemas a choice beside the schema of each value: a reference such as `${env:NAME}`."""

_TYPE_NAMES: Mapping[type, frozenset[str]] = {
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    str: frozenset({"string"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
    NoneType: frozenset({"null"}),
}


def directory() -> Path:
    """Where the committed schemas are: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "schemas"
    return installed if installed.is_dir() else package.parent / "schemas"


def schema_of(class_name: str | None = None) -> dict[str, Any]:  # Any: JSON
    """The published schema of the whole config, or of one model class."""
    return _read(ROOT_NAME if class_name is None else f"{class_name}.schema.json")


@cache
def validation_schema() -> Schema:
    """The schema of the whole config once its references are resolved."""
    return _read(ROOT_NAME, object_hook=_without_reference)


@cache
def engine_schema() -> Schema:
    """The schema of vLLM's engine arguments once references are resolved."""
    # jsonschema would validate a schema that names its dialect with that of the library, not with ours.
    return {
        keyword: part
        for keyword, part in _read(ENGINE_NAME, object_hook=_without_reference).items()
        if keyword != "$schema"
    }


@cache
def property_names() -> frozenset[str]:
    """The names of all keys of the config and of vLLM's engine arguments."""
    names: set[str] = set()

    def collect(schema: Schema) -> Schema:
        names.update(schema.get("properties", ()))
        return schema

    for file in (ROOT_NAME, ENGINE_NAME):
        _read(file, object_hook=collect)
    return frozenset(names)


@cache
def registry() -> Registry[Any]:
    """The schemas that the schema of the whole config refers to, by their ids."""
    return Registry().with_resources([(ENGINE_NAME, Resource.from_contents(engine_schema(), DRAFT202012))])


def schemas_at(data: Any, path: Sequence[str | int]) -> Iterator[Schema]:  # Any: what a file holds before it is checked
    """Every schema that `data`, a whole config, is validated with at `path`, alternatives included."""
    root = Resource.from_contents(validation_schema(), DRAFT202012)
    yield from _schemas_at(root.contents, registry().resolver_with_root(root), data, path)


def _schemas_at(schema: Any, resolver: Any, data: Any, path: Sequence[str | int]) -> Iterator[Schema]:
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        found = resolver.lookup(schema["$ref"])
        yield from _schemas_at(found.contents, found.resolver, data, path)
    others = [other for keyword in ("allOf", "anyOf", "oneOf") for other in schema.get(keyword, ())]
    if "if" in schema:
        others.append(schema.get("then" if Draft202012Validator(schema["if"]).is_valid(data) else "else"))
    for other in others:
        yield from _schemas_at(other, resolver, data, path)
    if not path:
        yield schema
        return
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        below = schema.get("items")
    else:
        below = schema.get("properties", {}).get(head, schema.get("additionalProperties"))
    try:
        item = data[head]
    except (KeyError, IndexError, TypeError):
        item = None
    yield from _schemas_at(below, resolver, item, rest)


def json_types(value: Any) -> frozenset[str]:  # Any: JSON
    """The names of the types that a value has in JSON Schema; none where it is UNKNOWN."""
    return _TYPE_NAMES.get(type(value), frozenset())


def types_of(schema: Schema) -> Sequence[str]:
    """The types that the schema itself allows; none where it does not say. Choices refer to mappings alone."""
    types = "object" if "$ref" in schema else schema.get("type", ())
    return [types] if isinstance(types, str) else types


def _read(name: str, **options: Any) -> dict[str, Any]:  # Any: options of `json`, and JSON
    schema: dict[str, Any] = json.loads((directory() / name).read_text(encoding="utf-8"), **options)
    return schema


def _without_reference(schema: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    if REFER not in schema.get("anyOf", ()):
        return schema
    choices = [choice for choice in schema["anyOf"] if choice != REFER]
    rest = {keyword: value for keyword, value in schema.items() if keyword != "anyOf"}
    return rest | (choices[0] if len(choices) == 1 else {"anyOf": choices})
