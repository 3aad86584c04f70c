"""The JSON Schemas of the config, generated from its classes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from appliance.config.base import FREE_PREFIX, BaseConfig
from appliance.config.engine import EngineConfig
from appliance.config.models import MODEL_CONFIGS
from appliance.config.root import Config
from appliance.engines.vllm.schema import NAME as ENGINE_NAME
from appliance.engines.vllm.schema import directory

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROOT = "appliance"

_FREE_KEYS = {f"^{FREE_PREFIX}": True}


class _Generator(GenerateJsonSchema):
    """pydantic's generator, made to read well in an editor."""

    schema_dialect = DIALECT

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic asks so
        """Never: a title would only repeat the key."""
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """A closed mapping with room for free keys."""
        made = super().model_schema(schema)
        made.pop("title", None)
        return made | {"patternProperties": _FREE_KEYS}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """A type or null, as one list of types where that says it all."""
        inner = self.generate_inner(schema["schema"])
        if not isinstance(inner.get("type"), str):
            return self._typed_choices(super().nullable_schema(schema))
        made = inner | {"type": [inner["type"], "null"]}
        return made | {"enum": [*inner["enum"], None]} if "enum" in inner else made

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        """Choices that each say their type."""
        return self._typed_choices(super().union_schema(schema))

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """A default where it says something: the one of a section is that of its keys, and null is a key left out."""
        made = super().default_schema(schema)
        if made.get("default") is None or isinstance(schema.get("default"), BaseConfig):
            made.pop("default", None)
        return made

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """One choice after the other as if and then: where the tag is known, the errors are those of its choice alone.

        Where it is not, any key of any choice is one that may have been meant.
        """
        if callable(schema["discriminator"]):
            return self._by_key(schema)
        tag = str(schema["discriminator"])
        choices = {str(name): self.generate_inner(choice) for name, choice in schema["choices"].items()}
        tagged = {name: {"properties": {tag: {"const": name}}, "required": [tag]} for name in choices}
        meant = [self.resolve_ref_schema(choice) for choice in choices.values()]
        return {
            "type": "object",
            "required": [tag],
            "properties": {tag: {"description": meant[0]["properties"][tag]["description"], "enum": list(choices)}},
            "allOf": [{"if": tagged[name], "then": choice} for name, choice in choices.items()],
            "if": {"not": {"anyOf": list(tagged.values())}},
            "then": {
                "required": [key for key in meant[0]["required"] if all(key in one["required"] for one in meant)],
                "properties": {key: self._described(made) for one in meant for key, made in one["properties"].items()},
                "additionalProperties": False,
                "patternProperties": _FREE_KEYS,
            },
        }

    def _by_key(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Two choices, of which the one that requires a key is meant where that key is there."""
        one, other = (self.generate_inner(choice) for choice in schema["choices"].values())
        if "required" not in self.resolve_ref_schema(one):
            one, other = other, one
        required = self.resolve_ref_schema(one)["required"]
        return {"type": "object", "if": {"type": "object", "required": required}, "then": one, "else": other}

    def _typed_choices(self, schema: JsonSchemaValue) -> JsonSchemaValue:
        """A choice that is a section says that it is a mapping: by its type the one that is meant is found."""
        for choice in schema.get("anyOf", ()):
            if "$ref" in choice:
                choice["type"] = self.resolve_ref_schema(choice).get("type", "object")
        return schema

    def _described(self, schema: JsonSchemaValue) -> JsonSchemaValue:
        described = schema if "description" in schema else self.resolve_ref_schema(schema)
        return {"description": described.get("description", "")}


@cache
def schema_of(class_name: str | None = None) -> dict[str, Any]:  # Any: JSON
    """The schema of the whole config, or of one model class.

    Raises:
        KeyError: there is no such model class.
    """
    config: type[BaseConfig] = Config if class_name is None else MODEL_CONFIGS[class_name]
    made = config.model_json_schema(by_alias=True, schema_generator=_Generator)
    name, title = (
        (ROOT, "Config of an appliance") if class_name is None else (class_name, f"Model of class {class_name}")
    )
    head = {"$schema": DIALECT, "$id": f"{name}.schema.json", "title": title}
    return head | _with_engine_arguments(made)


def _with_engine_arguments(schema: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """The schema with vLLM's own arguments behind ``engine.args``; pydantic refuses to refer to another file."""
    definition = schema.get("$defs", {}).get(EngineConfig.__name__)
    if definition is not None:
        args = definition["properties"]["args"]
        definition["properties"]["args"] = {"$ref": ENGINE_NAME, "description": args["description"]}
    return schema


def engine_schema() -> dict[str, Any]:  # Any: JSON
    """The committed schema of vLLM's engine arguments."""
    return dict(json.loads((directory() / ENGINE_NAME).read_text(encoding="utf-8")))
