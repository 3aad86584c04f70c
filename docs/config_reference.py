"""The keys of the config: their page of the reference, and the comments of `examples/everything.yaml`."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from appliance.config import json_schema

HEAD = """\
# yaml-language-server: $schema=../schemas/appliance.schema.json
#
# Every key, with the first sentence of its description: to copy from, not to serve. `just reference` writes the
# comments. `appliance validate --without-secrets examples/everything.yaml` validates it.
#
"""

# The keys that tell the variants of a part apart.
_TAGS = ("class", "kind", "framework")

Json = Mapping[str, Any]  # Any: JSON
Location = tuple[str | int, ...]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are made one line each."""
    lines = [[re.sub(r"\s*\n\s*", " ", str(cell)).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *lines]) + "\n"


def code(value: object) -> str:
    """A value as Markdown code."""
    return f"`{value}`"


@dataclass(frozen=True, slots=True)
class Example:
    """A key in the file of examples: the schema that has it, its value, its line, and the indent of a comment."""

    schema: Json
    key: str
    value: Any  # Any: YAML
    line: int
    indent: int

    def comment(self) -> list[str]:
        """Return the first sentence of the key's description as lines above it."""
        text = re.split(r"[.;:]\s", self.schema["properties"][self.key].get("description", "") + " ")[0]
        prefix = " " * self.indent + "# "
        return textwrap.wrap(f"{text.strip('.')}.", 118, initial_indent=prefix, subsequent_indent=prefix)


class ConfigReference:
    """All keys of the config, with examples from a file that shows each of them."""

    def __init__(self, everything: str) -> None:
        self._schema = json_schema.validation_schema()
        self._definitions: Json = self._schema["$defs"]
        self._lines = [line for line in everything.splitlines() if not line.lstrip().startswith("#")]
        data = YAML().load("\n".join(self._lines))
        self._examples: dict[tuple[int, str], Example] = {}
        for example in self._walk(data, data, ()):
            self._examples.setdefault((id(example.schema), example.key), example)
        self._names: dict[str, str] = {}
        self._find_names("", self._schema)

    def annotated(self) -> str:
        """Return the file of examples with a comment above the first occurrence of each key."""
        comments = {
            example.line: example.comment()
            for example in self._examples.values()
            if example.key not in {"name", *_TAGS}
        }
        return HEAD + "".join(
            f"{part}\n" for number, line in enumerate(self._lines) for part in (*comments.get(number, ()), line)
        )

    def without_example(self) -> Sequence[str]:
        """Return the keys that the file of examples does not show."""
        parts = {name: self._definitions[name] for name in self._names} | {"": self._schema}
        return [
            f"{self._names.get(name, '')} {key}".strip()
            for name, part in parts.items()
            for key in part["properties"]
            if (id(part), key) not in self._examples
        ]

    def tables(self) -> Sequence[str]:
        """Return a table for the file, and one for each part of it."""
        parts = [(code(title), name, self._definitions[name]) for name, title in self._names.items()]
        return [self._table(*part) for part in [("The file", "", self._schema), *parts]]

    def _walk(self, root: Any, value: Any, path: Location) -> Iterator[Example]:  # Any: YAML
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield from self._walk(root, item, (*path, number))
        if not isinstance(value, CommentedMap):
            return
        schemas = [each for each in json_schema.schemas_at(root, path) if "properties" in each]
        for number, (key, item) in enumerate(value.items()):
            line, column = value.lc.key(key)
            # Above the dash of a list's entry; a mapping on one line has no room for comments.
            indent = column - 2 if number == 0 and path and isinstance(path[-1], int) else column
            for schema in schemas:
                if key in schema["properties"]:
                    yield Example(schema, key, item, -1 if value.fa.flow_style() else line, indent)
            yield from self._walk(root, item, (*path, key))

    def _find_names(self, path: str, schema: Json) -> None:
        """Name each part of the file after the first path that leads to it."""
        for key, below in schema["properties"].items():
            for name, suffix in self._parts(below):
                definition, where = self._definitions[name], (f"{path}.{key}" if path else key) + suffix
                if "properties" in definition and name not in self._names:
                    tags = {tag: definition["properties"].get(tag, {}).get("const") for tag in _TAGS}
                    shown = where + "".join(f" ({tag}: {value})" for tag, value in tags.items() if value)
                    is_taken = shown in self._names.values()
                    self._names[name] = f"{shown} ({name.removesuffix('Config')})" if is_taken else shown
                    self._find_names(where, definition)

    def _parts(self, schema: Any, suffix: str = "") -> Iterator[tuple[str, str]]:  # Any: JSON
        """The definitions that a value may be, each with the marks of lists and mappings around it."""
        if not isinstance(schema, dict):
            return
        if (reference := schema.get("$ref", "")).startswith("#/$defs/"):
            yield reference.rpartition("/")[2], suffix
        choices = [choice for keyword in ("anyOf", "oneOf", "allOf") for choice in schema.get(keyword, ())]
        for choice in (*choices, schema.get("then"), schema.get("else")):
            yield from self._parts(choice, suffix)
        yield from self._parts(schema.get("items"), suffix + "[]")
        yield from self._parts(schema.get("additionalProperties"), suffix + ".NAME")

    def _table(self, title: str, name: str, schema: Json) -> str:
        rows = []
        for key, below in schema["properties"].items():
            facts = [self._type(below)]
            if key in schema.get("required", ()):
                facts.append("required")
            elif "default" in below:
                facts.append(f"default {code(json.dumps(below['default']))}")
            example = self._examples.get((id(schema), key))
            shown = "" if example is None else _short(example.value)
            cells = (code(key), ", ".join(facts), shown, below.get("description", ""))
            rows.append(cells)
        anchor = f" {{#{name}}}" if name else ""
        head = ("key", "type, default", "example", "meaning")
        return f"## {title}{anchor}\n\n{schema.get('description', '')}\n\n{table(head, rows)}"

    def _type(self, schema: Json) -> str:
        """The type of a value in words, with links to the tables of parts."""
        if "const" in schema:
            return code(schema["const"])
        if "enum" in schema:
            return ", ".join(code(value) for value in schema["enum"] if value is not None)
        if {"$ref", "allOf", "if"} & schema.keys():
            for name, _ in self._parts(schema):
                if "enum" in (part := self._definitions[name]):
                    return self._type(part)
            parts = dict.fromkeys(name for name, _ in self._parts(schema) if name in self._names)
            return " or ".join(f"[{code(self._names[name])}](#{name})" for name in parts) or "any"
        if choices := [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]:
            words = dict.fromkeys(self._type(each) for each in choices)
            # A reference to the environment may stand for every value.
            return " or ".join(word for word in words if word != "any" or len(words) == 1)
        types = [each for each in json_schema.types_of(schema) if each != "null"]
        if types == ["array"]:
            return f"list of {self._type(schema.get('items', {}))}"
        if types == ["object"]:
            below = schema.get("additionalProperties")
            return f"mapping of {self._type(below)}" if isinstance(below, dict) else "mapping"
        bounds = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        limits = [f"{sign} {schema[keyword]:,}" for keyword, sign in bounds if keyword in schema]
        return " ".join([" or ".join(types) or "any", ", ".join(limits)]).strip()


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return code(text) if len(text) <= 48 and "`" not in text else ""
