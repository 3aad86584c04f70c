"""What the JSON Schema says about one place of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from appliance.config.raw_config import RawConfig
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
    def validator(self) -> Draft202012Validator:
        """The validator of the whole schema."""
        return Draft202012Validator(self.schema, registry=self._registry)

    def at(self, data: Any, path: DataPath) -> Iterator[Schema]:  # Any: what a file holds before it is checked
        """Every schema that `data` is held against at `path`, alternatives included."""
        resolver = self._registry.resolver_with_root(Resource.from_contents(self.schema, DRAFT202012))
        yield from self._walk(self.schema, resolver, data, path)

    @property
    def _registry(self) -> Registry[Any]:
        resources = (Resource.from_contents(schema, DRAFT202012) for schema in self.others)
        return Registry().with_resources((str(resource.id()), resource) for resource in resources)

    def _walk(self, schema: Any, resolver: Any, data: Any, path: DataPath) -> Iterator[Schema]:
        if not isinstance(schema, dict):
            return
        for other, lookup in _alternatives(schema, resolver, data):
            yield from self._walk(other, lookup, data, path)
        if not path:
            yield schema
            return
        head, rest = path[0], path[1:]
        below = schema.get("items") if isinstance(head, int) else _property(schema, head)
        yield from self._walk(below, resolver, _child(data, head), rest)


def typed(draft: RawConfig, shape: SchemaLookup) -> RawConfig:
    """The draft with each text from outside made what the schema wants in its place, where it can be made that."""
    data = draft.data
    for path in draft.texts:
        text = draft.get(path)
        value = converted(text, shape.at(data, path))
        if value is not text:
            data = draft.with_value(path, value, draft.place(path)).data
            draft = replace(draft, data=data)
    return draft


def converted(text: str, schemas: Iterable[Schema]) -> Any:  # Any: JSON
    """The text as the value that one of the schemas wants, or as it is: where text is wanted, or nothing else fits."""
    types = {name for schema in schemas for name in types_of(schema)}
    if not types or "string" in types:
        return text
    try:
        draft, faults = parse(text, Source("", None))
    except ConfigError:
        return text
    if not faults and json_types(draft.data) & types:
        return draft.data
    # The environment's flags are often 1 or yes, which YAML does not read as true.
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
    """The names of the types that a value has in JSON Schema."""
    return _TYPE_NAMES[type(value)]


def types_of(schema: Schema) -> Sequence[str]:
    """The types that the schema itself allows; none where it does not say."""
    types = schema.get("type", ())
    return [types] if isinstance(types, str) else types


def _alternatives(schema: Schema, resolver: Any, data: Any) -> Iterator[tuple[Any, Any]]:
    """The schemas that hold beside this one, each with the resolver of its references."""
    if "$ref" in schema:
        resolved = resolver.lookup(schema["$ref"])
        yield resolved.contents, resolved.resolver
    if "if" in schema and Draft202012Validator(schema["if"]).is_valid(data):
        yield schema.get("then"), resolver
    elif "if" in schema:
        yield schema.get("else"), resolver
    for keyword in ("allOf", "anyOf", "oneOf"):
        for other in schema.get(keyword, ()):
            yield other, resolver


def _property(schema: Schema, key: str) -> Any:
    return schema.get("properties", {}).get(key, schema.get("additionalProperties"))


def _child(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None
