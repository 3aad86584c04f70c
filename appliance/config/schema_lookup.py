"""What the JSON Schema says about one value of the config, and the conversion of text to the type it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from appliance.config.raw_config import RawConfig, scalars
from appliance.config.source_location import DataPath, Source
from appliance.config.yaml_parser import parse
from appliance.core.errors import ConfigError

Schema = Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True)
class SchemaLookup:
    """A schema, and the other schemas that it refers to by their ids."""

    schema: Schema
    others: tuple[Schema, ...] = ()

    @property
    def registry(self) -> Registry[Any]:
        """The other schemas by their ids."""
        resources = (Resource.from_contents(schema, DRAFT202012) for schema in self.others)
        return Registry().with_resources((str(resource.id()), resource) for resource in resources)

    def at(self, data: Any, path: DataPath) -> Iterator[Schema]:  # Any: what a file holds before it is checked
        """Every schema that `data` is validated with at `path`, alternatives included."""
        resolver = self.registry.resolver_with_root(Resource.from_contents(self.schema, DRAFT202012))
        yield from _walk(self.schema, resolver, data, path)


def _walk(schema: Any, resolver: Any, data: Any, path: DataPath) -> Iterator[Schema]:
    if not isinstance(schema, dict):
        return
    for other, lookup in _alternatives(schema, resolver, data):
        yield from _walk(other, lookup, data, path)
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
    yield from _walk(below, resolver, item, rest)


def _alternatives(schema: Schema, resolver: Any, data: Any) -> Iterator[tuple[Any, Any]]:
    """The schemas that hold beside this one, each with the resolver of its references."""
    if "$ref" in schema:
        resolved = resolver.lookup(schema["$ref"])
        yield resolved.contents, resolved.resolver
    if "if" in schema:
        is_met = Draft202012Validator(schema["if"]).is_valid(data)
        yield schema.get("then" if is_met else "else"), resolver
    for keyword in ("allOf", "anyOf", "oneOf"):
        for other in schema.get(keyword, ()):
            yield other, resolver


def convert_texts(raw: RawConfig, lookup: SchemaLookup) -> RawConfig:
    """The config with each text from outside converted to the type that the schema asks for, where that is possible."""
    for path, secrets in raw.texts.items():
        text = raw.get(path)
        if not isinstance(text, str):
            continue
        value = convert_text(text, lookup.at(raw.data, path))
        if value is not text:
            raw = raw.with_value(path, value)
        if secrets and isinstance(value, dict | list):
            below = {(*path, *leaf): frozenset({str(item)} - {""}) for leaf, item in scalars(value)}
            raw = replace(raw, texts={**raw.texts, **below})
    return raw


def convert_text(text: str, schemas: Iterable[Schema]) -> Any:  # Any: JSON
    """The text as a value of a type that one of the schemas allows; unchanged where text is allowed or nothing fits."""
    types = {name for schema in schemas for name in types_of(schema)}
    if not types or "string" in types:
        return text
    try:
        parsed, errors = parse(text, Source("", None))
    except ConfigError:
        return text
    if not errors and json_types(parsed.data) & types:
        return parsed.data
    # Flags of the environment are often 1 or yes, which YAML 1.2 does not read as true.
    return _FLAGS.get(text.strip().lower(), text) if "boolean" in types else text


_FLAGS = {"1": True, "yes": True, "on": True, "0": False, "no": False, "off": False}


_TYPE_NAMES: Mapping[type, frozenset[str]] = {
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    str: frozenset({"string"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
    NoneType: frozenset({"null"}),
}


def json_types(value: Any) -> frozenset[str]:  # Any: JSON
    """The names of the types that a value has in JSON Schema; none where it is UNKNOWN."""
    return _TYPE_NAMES.get(type(value), frozenset())


def types_of(schema: Schema) -> Sequence[str]:
    """The types that the schema itself allows; none where it does not say."""
    types = schema.get("type", ())
    return [types] if isinstance(types, str) else types
