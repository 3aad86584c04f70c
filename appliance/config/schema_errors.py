"""Errors of the JSON Schema in the words of a person: what is wrong, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jsonschema import ValidationError

from appliance.config.base import FREE_PREFIX
from appliance.config.raw_config import RawConfig, quote
from appliance.config.schema_lookup import Schema, SchemaLookup, json_types, types_of
from appliance.config.source_location import DataPath, Diagnostic
from appliance.core.suggestions import did_you_mean, known_names, nearest

_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def check(draft: RawConfig, shape: SchemaLookup) -> Iterator[Diagnostic]:
    """Every fault that the schema finds in the draft."""
    for error in shape.validator.iter_errors(draft.data):
        yield from _faults(_Error.of(error, draft))


@dataclass(frozen=True, slots=True)
class _Error:
    """A value that does not hold to one keyword of its schema; jsonschema's own type says less about its parts."""

    draft: RawConfig
    path: DataPath
    value: Any  # Any: what a file holds before it is checked
    keyword: str
    wanted: Any  # Any: the value of the keyword
    schema: Schema
    inner: tuple[tuple[int, ValidationError], ...]
    """The errors of each alternative, where the keyword has alternatives."""

    @classmethod
    def of(cls, error: ValidationError, draft: RawConfig) -> _Error:
        schema = error.schema if isinstance(error.schema, Mapping) else {}
        inner = tuple((int(each.schema_path[0]), each) for each in error.context or ())
        path = tuple(error.absolute_path)
        return cls(draft, path, error.instance, str(error.validator), error.validator_value, schema, inner)

    @property
    def secret(self) -> bool:
        return bool(self.draft.secrets(self.path))


def _faults(error: _Error) -> Iterator[Diagnostic]:
    draft, path = error.draft, error.path
    if error.keyword == "required":
        known = error.schema.get("properties", {})
        misspelt = {near for key in error.value if key not in known for near in nearest(key, known)}
        for key in error.wanted:
            # A misspelt key is one fault, not two.
            if key not in error.value and key not in misspelt:
                yield Diagnostic((*path, key), f"is missing; {_wanted(error.schema, key)}", draft.place(path))
    elif error.keyword == "additionalProperties":
        known = error.schema.get("properties", {})
        for key in error.value:
            if key not in known and not key.startswith(FREE_PREFIX):
                yield draft.key_fault((*path, key), _unknown_key(key, known))
    elif error.keyword in ("anyOf", "oneOf"):
        yield from _alternatives(error)
    else:
        must = _MESSAGES.get(error.keyword, _hold)(error)
        yield _fault(error, f"{_is(error)}; must {must}")


def _unknown_key(key: str, known: Iterable[str]) -> str:
    return f"unknown key; {did_you_mean(key, known) or known_names('keys', known)}"


def _wanted(schema: Schema, key: str) -> str:
    return f"must be given{_about(schema.get('properties', {}).get(key, {}))}"


def _about(schema: Schema) -> str:
    about = str(schema.get("description", "")).partition("\n")[0]
    return f": {about}" if about else ""


def _alternatives(error: _Error) -> Iterator[Diagnostic]:
    """The faults of the one alternative that has the type of the value, or one fault that names them all."""
    kinds = json_types(error.value)
    fits = [index for index, schema in enumerate(error.wanted) if kinds & set(types_of(schema))]
    if len(fits) == 1:
        for index, inner in error.inner:
            if index == fits[0]:
                yield from _faults(_Error.of(inner, error.draft))
    else:
        yield _fault(error, f"{_is(error)}; must be {_phrase(error.schema)}")


def _is(error: _Error) -> str:
    if error.value is None:
        return "is empty"
    if isinstance(error.value, dict | list):
        kind = "mapping" if isinstance(error.value, dict) else "list"
        return f"is a {kind}" if error.value else f"is an empty {kind}"
    if _is_scalar_for_section(error):
        # A section may hold secrets, and so may what stands in its place.
        return "is text"
    return f"is {error.draft.quote(error.path)}"


def _fault(error: _Error, message: str) -> Diagnostic:
    fault = error.draft.fault(error.path, message)
    return replace(fault, is_secret=True) if _is_scalar_for_section(error) else fault


def _is_scalar_for_section(error: _Error) -> bool:
    alternatives = error.wanted if error.keyword in ("anyOf", "oneOf") else [error.schema]
    types = {each for schema in alternatives for each in types_of(schema)}
    is_section = error.keyword in ("type", "anyOf", "oneOf") and not {"object", "array"}.isdisjoint(types)
    return is_section and isinstance(error.value, str)


def _phrase(schema: Schema) -> str:
    """What a value must be by its schema, such as "text or a list"."""
    if "enum" in schema or "const" in schema:
        return _one_of(schema.get("enum") or [schema["const"]])
    # Empty is right as well where null is a type, but nobody means to write it.
    names = [_WORDS[name] for name in types_of(schema) if name in _WORDS]
    names += [_phrase(other) for keyword in ("anyOf", "oneOf") for other in schema.get(keyword, ())]
    return " or ".join(dict.fromkeys(filter(None, names)))


def _one_of(choices: Iterable[Any]) -> str:  # Any: JSON
    words = [quote(choice) for choice in choices if choice is not None]
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _be_of_type(error: _Error) -> str:
    hint = ""
    if isinstance(error.value, int | float) and "string" in types_of(error.schema):
        hint = ", in quotes"
    elif isinstance(error.value, str) and not error.secret and re.fullmatch(r"[-+.\d]+|true|false", error.value):
        hint = ", without quotes"
    return f"be {_phrase(error.schema)}{hint}"


def _be_one_of(error: _Error) -> str:
    choices = error.wanted if error.keyword == "enum" else [error.wanted]
    words = [choice for choice in choices if isinstance(choice, str)]
    # A hint at what is near would tell what a secret is.
    hint = did_you_mean(error.value, words) if isinstance(error.value, str) and not error.secret else ""
    return f"be {_one_of(choices)}" + (f"; {hint}" if hint else "")


def _hold(error: _Error) -> str:
    return f"hold to {error.keyword}: {quote(error.wanted)}"


def _have(bound: str, one: str, many: str) -> Callable[[_Error], str]:
    return lambda error: f"have {bound} {error.wanted} {one if error.wanted == 1 else many}"


def _form(pattern: str) -> str:
    is_url = pattern.startswith("^https?://")
    return "be http:// or https://, a host, and an optional port and path" if is_url else f"match {pattern}"


_MESSAGES: Mapping[str, Callable[[_Error], str]] = {
    "type": _be_of_type,
    "enum": _be_one_of,
    "const": _be_one_of,
    "minimum": lambda error: f"be at least {error.wanted}",
    "maximum": lambda error: f"be at most {error.wanted}",
    "exclusiveMinimum": lambda error: f"be more than {error.wanted}",
    "exclusiveMaximum": lambda error: f"be less than {error.wanted}",
    "minLength": _have("at least", "character", "characters"),
    "maxLength": _have("at most", "character", "characters"),
    "minItems": _have("at least", "entry", "entries"),
    "maxItems": _have("at most", "entry", "entries"),
    "minProperties": _have("at least", "key", "keys"),
    "uniqueItems": lambda _: "have each entry once",
    "pattern": lambda error: f"{_form(str(error.wanted))}{_about(error.schema)}",
}
