"""Writes the committed JSON Schemas of the config, or checks them: ``python -m appliance.config.write_schemas``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic._internal._docs_extraction import extract_docstrings_from_cls
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from appliance.config.base import FREE_PREFIX, BaseConfig
from appliance.config.engine import EngineConfig
from appliance.config.interpolation import PATTERN
from appliance.config.json_schema import ENGINE_NAME, REFER, ROOT_NAME, directory
from appliance.config.models import MODEL_CONFIGS
from appliance.config.root import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"

REFERENCE: Mapping[str, Any] = {
    "type": "string",
    "pattern": PATTERN,
    "description": "A reference to an environment variable or a file: `${env:NAME}`, `${env:NAME:-default}`, "
    "`${file:/path}`.",
    "patternErrorMessage": "must be a reference such as ${env:NAME}, or a value of the right form",
}

_ANNOTATIONS = frozenset({"description", "default", "deprecated", "examples", "writeOnly", "format"})

_LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")

_FREE_KEYS = {f"^{FREE_PREFIX}": True}


def files() -> Mapping[str, str]:
    """The text of each schema file by its name: that of the whole config, and one for each model class."""
    schemas = [
        _generate(Config, ROOT_NAME, "Config of an appliance"),
        *(_generate(config, f"{name}.schema.json", f"Model of class {name}") for name, config in MODEL_CONFIGS.items()),
    ]
    return {schema["$id"]: json.dumps(schema, indent=2) + "\n" for schema in schemas}


def _generate(config: type[BaseConfig], name: str, title: str) -> dict[str, Any]:  # Any: JSON
    generated = config.model_json_schema(by_alias=True, schema_generator=_Generator)
    engine = generated.get("$defs", {}).get(EngineConfig.__name__)
    if engine is not None:
        # pydantic refuses to refer to another file.
        args = engine["properties"]["args"]
        engine["properties"]["args"] = {"$ref": ENGINE_NAME, "description": args["description"]}
    return with_references({"$schema": DIALECT, "$id": name, "title": title} | generated)


def with_references(schema: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """The schema with a reference allowed in the place of any value."""
    referring: dict[str, Any] = _referring(schema)
    return referring | {"$defs": referring.get("$defs", {}) | {"Reference": REFERENCE}}


def _referring(schema: Any) -> Any:  # Any: JSON
    if isinstance(schema, list):
        return [_referring(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # A condition compares what is written, and refers to nothing.
    made = {keyword: value if keyword == "if" else _referring(value) for keyword, value in schema.items()}
    if isinstance(made.get("properties"), dict):
        made["properties"] = {name: _or_reference(value) for name, value in made["properties"].items()}
    for keyword in ("items", "additionalProperties"):
        if isinstance(made.get(keyword), dict) and made[keyword].get("type") != "object":
            made[keyword] = _or_reference(made[keyword])
    return made


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """The schema of one value with a reference as another choice; annotations stay where editors look for them."""
    checks = {keyword: value for keyword, value in schema.items() if keyword not in _ANNOTATIONS}
    is_any_text = checks.keys() <= {"type", "minLength"} and "string" in checks.get("type", ("string",))
    if is_any_text or "const" in checks:
        return schema
    annotations = {keyword: value for keyword, value in schema.items() if keyword in _ANNOTATIONS}
    choices = checks["anyOf"] if checks.keys() == {"anyOf"} else [checks]
    return annotations | {"anyOf": [*choices, REFER]}


class _Generator(GenerateJsonSchema):
    """pydantic's generator, for schemas that read well in an editor."""

    schema_dialect = DIALECT

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic asks so
        """False: a title would only repeat the key."""
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """A closed mapping that allows free keys."""
        generated = super().model_schema(schema)
        generated.pop("title", None)
        if "description" in generated:
            generated["description"] = _LINE_BREAK.sub(" ", generated["description"])
        for name, description in _descriptions(schema["cls"]).items():
            key = schema["cls"].model_fields[name].alias or name
            if key in generated["properties"]:
                generated["properties"][key]["description"] = description
        return generated | {"patternProperties": _FREE_KEYS}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """A type or null, as one list of types where that is possible."""
        inner = self.generate_inner(schema["schema"])
        if not isinstance(inner.get("type"), str):
            return super().nullable_schema(schema)
        made = inner | {"type": [inner["type"], "null"]}
        return made | {"enum": [*inner["enum"], None]} if "enum" in inner else made

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """A default where it is useful: that of a section is the defaults of its keys, and null is a key left out."""
        made = super().default_schema(schema)
        if made.get("default") is None or isinstance(schema.get("default"), BaseConfig):
            made.pop("default", None)
        return made

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """The choices as `if` and `then`, so that the errors are those of the tagged choice alone.

        With an unknown tag, the keys of every choice are allowed, so that errors can suggest them.
        """
        if callable(schema["discriminator"]):
            return self._by_key(schema)
        tag = str(schema["discriminator"])
        choices = {str(name): self.generate_inner(choice) for name, choice in schema["choices"].items()}
        tagged = {name: {"properties": {tag: {"const": name}}, "required": [tag]} for name in choices}
        resolved = [self.resolve_ref_schema(choice) for choice in choices.values()]
        return {
            "type": "object",
            "required": [tag],
            "properties": {tag: {"description": resolved[0]["properties"][tag]["description"], "enum": list(choices)}},
            "allOf": [{"if": tagged[name], "then": choice} for name, choice in choices.items()],
            "if": {"not": {"anyOf": list(tagged.values())}},
            "then": {
                "required": [key for key in resolved[0]["required"] if all(key in one["required"] for one in resolved)],
                "properties": {
                    key: self._described(made) for one in resolved for key, made in one["properties"].items()
                },
                "additionalProperties": False,
                "patternProperties": _FREE_KEYS,
            },
        }

    def _by_key(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Choices that require a key, with a value if it has only one, and last the choice where no key is given."""
        choices = [self.generate_inner(choice) for choice in schema["choices"].values()]
        resolved = [self.resolve_ref_schema(choice) for choice in choices]
        otherwise = next((index for index, each in enumerate(resolved) if "required" not in each), len(choices) - 1)
        made = choices[otherwise]
        for index, choice in enumerate(resolved):
            if index == otherwise:
                continue
            keys, properties = choice["required"], choice["properties"]
            values = {key: {"const": properties[key]["const"]} for key in keys if "const" in properties[key]}
            condition = {"type": "object", "required": keys} | ({"properties": values} if values else {})
            made = {"type": "object", "if": condition, "then": choices[index], "else": made}
        return made

    def _described(self, schema: JsonSchemaValue) -> JsonSchemaValue:
        described = schema if "description" in schema else self.resolve_ref_schema(schema)
        return {"description": described.get("description", "")}


def _descriptions(config: type[BaseConfig]) -> dict[str, str]:
    """The docstrings under the fields of a class and its bases, with one line for each paragraph."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if issubclass(base, BaseConfig):
            found |= extract_docstrings_from_cls(base, use_inspect=True)
    return {name: _LINE_BREAK.sub(" ", text) for name, text in found.items() if name in config.model_fields}


def write_or_check(texts: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Write each schema file, or with ``--check`` name those that are out of date; return the exit status."""
    paths = {directory() / name: text for name, text in texts.items()}
    if "--check" not in arguments:
        for path, text in paths.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path for path, text in paths.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path} is out of date; run: just schemas", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(write_or_check(files(), sys.argv[1:]))
