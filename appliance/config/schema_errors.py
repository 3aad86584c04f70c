"""Validation by the JSON Schema, with errors that say what is wrong and what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators

from appliance.config.base import FREE_PREFIX
from appliance.config.engine import OWNED
from appliance.config.raw_config import UNKNOWN, RawConfig, quote
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


def check(raw: RawConfig, lookup: SchemaLookup) -> Iterator[Diagnostic]:
    """Every error that the schema finds in the config."""
    for error in _validator_class()(lookup.schema, registry=lookup.registry).iter_errors(raw.data):
        yield from _diagnostics(_Error.of(error, raw))


@cache
def _validator_class() -> type[Draft202012Validator]:
    """A validator that accepts UNKNOWN everywhere, but for the tag of a union: it chooses none of the members."""
    keywords = {
        name: check if name == "const" else _unless_unknown(check)
        for name, check in Draft202012Validator.VALIDATORS.items()
    }
    extended: type[Draft202012Validator] = validators.extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call] # its stub has no types
    return extended


def _unless_unknown(check: Callable[..., Any]) -> Callable[..., Any]:
    def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        return () if instance is UNKNOWN else check(validator, value, instance, schema)

    return keyword


@dataclass(frozen=True, slots=True)
class _Error:
    """A value that violates one keyword of its schema; jsonschema's own class says less about its types."""

    raw: RawConfig
    path: DataPath
    value: Any  # Any: what a file holds before it is checked
    keyword: str
    expected: Any  # Any: the value of the keyword
    schema: Schema
    inner: tuple[tuple[int, ValidationError], ...]
    """The errors of each alternative, where the keyword has alternatives."""

    @classmethod
    def of(cls, error: ValidationError, raw: RawConfig) -> _Error:
        schema = error.schema if isinstance(error.schema, Mapping) else {}
        inner = tuple((int(each.schema_path[0]), each) for each in error.context or ())
        path = tuple(error.absolute_path)
        return cls(raw, path, error.instance, str(error.validator), error.validator_value, schema, inner)

    @property
    def secret(self) -> bool:
        return bool(self.raw.secrets(self.path))


def _diagnostics(error: _Error) -> Iterator[Diagnostic]:
    raw, path = error.raw, error.path
    if error.keyword == "required":
        known = error.schema.get("properties", {})
        misspelt = {near for key in error.value if key not in known for near in nearest(key, known)}
        for key in error.expected:
            # A misspelt key is one error, not two.
            if key not in error.value and key not in misspelt:
                yield Diagnostic((*path, key), f"is missing; {_must_be_given(error.schema, key)}", raw.location(path))
    elif error.keyword == "additionalProperties":
        known = error.schema.get("properties", {})
        for key in error.value:
            if key not in known and not key.startswith(FREE_PREFIX):
                yield raw.key_diagnostic((*path, key), _unknown_key(path, key, known))
    elif error.keyword in ("anyOf", "oneOf"):
        yield from _alternatives(error)
    else:
        must = _MESSAGES.get(error.keyword, _satisfy)(error)
        yield _diagnostic(error, f"{_is(error)}; must {must}")


def _unknown_key(path: DataPath, key: str, known: Iterable[str]) -> str:
    if path[-2:] == ("engine", "args") and key in OWNED:
        return f"is not set here; {OWNED[key]}"
    if path[-1:] == ("engine",):
        # It chooses another schema than that of the keys beside it.
        known = {*known, "python"}
    return f"unknown key; {did_you_mean(key, known) or known_names('keys', known)}"


def _must_be_given(schema: Schema, key: str) -> str:
    return f"must be given{_about(schema.get('properties', {}).get(key, {}))}"


def _about(schema: Schema) -> str:
    about = str(schema.get("description", "")).partition("\n")[0]
    return f": {about}" if about else ""


def _alternatives(error: _Error) -> Iterator[Diagnostic]:
    """The errors of the one alternative that has the type of the value, or one error that names them all."""
    kinds = json_types(error.value)
    fits = [index for index, schema in enumerate(error.expected) if kinds & set(types_of(schema))]
    if len(fits) == 1:
        for index, inner in error.inner:
            if index == fits[0]:
                yield from _diagnostics(_Error.of(inner, error.raw))
    else:
        yield _diagnostic(error, f"{_is(error)}; must be {_phrase(error.schema)}")


def _is(error: _Error) -> str:
    if error.value is None:
        return "is empty"
    if isinstance(error.value, dict | list):
        kind = "mapping" if isinstance(error.value, dict) else "list"
        return f"is a {kind}" if error.value else f"is an empty {kind}"
    if _is_scalar_for_part(error):
        # A part of the config may hold secrets, and so may text in its place.
        return "is text"
    return f"is {error.raw.quote(error.path)}"


def _diagnostic(error: _Error, message: str) -> Diagnostic:
    diagnostic = error.raw.diagnostic(error.path, message)
    return replace(diagnostic, is_secret=True) if _is_scalar_for_part(error) else diagnostic


def _is_scalar_for_part(error: _Error) -> bool:
    alternatives = error.expected if error.keyword in ("anyOf", "oneOf") else [error.schema]
    types = {each for schema in alternatives for each in types_of(schema)}
    is_part = error.keyword in ("type", "anyOf", "oneOf") and not {"object", "array"}.isdisjoint(types)
    return is_part and isinstance(error.value, str)


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
    choices = error.expected if error.keyword == "enum" else [error.expected]
    words = [choice for choice in choices if isinstance(choice, str)]
    # A suggestion would give most of a secret away.
    hint = did_you_mean(error.value, words) if isinstance(error.value, str) and not error.secret else ""
    return f"be {_one_of(choices)}" + (f"; {hint}" if hint else "")


def _satisfy(error: _Error) -> str:
    return f"satisfy {error.keyword}: {quote(error.expected)}"


def _have(bound: str, one: str, many: str) -> Callable[[_Error], str]:
    return lambda error: f"have {bound} {error.expected} {one if error.expected == 1 else many}"


def _form(pattern: str) -> str:
    is_url = pattern.startswith("^https?://")
    return "be http:// or https://, a host, and an optional port and path" if is_url else f"match {pattern}"


_MESSAGES: Mapping[str, Callable[[_Error], str]] = {
    "type": _be_of_type,
    "enum": _be_one_of,
    "const": _be_one_of,
    "minimum": lambda error: f"be at least {error.expected}",
    "maximum": lambda error: f"be at most {error.expected}",
    "exclusiveMinimum": lambda error: f"be more than {error.expected}",
    "exclusiveMaximum": lambda error: f"be less than {error.expected}",
    "minLength": _have("at least", "character", "characters"),
    "maxLength": _have("at most", "character", "characters"),
    "minItems": _have("at least", "entry", "entries"),
    "maxItems": _have("at most", "entry", "entries"),
    "minProperties": _have("at least", "key", "keys"),
    "uniqueItems": lambda _: "have each entry once",
    "pattern": lambda error: f"{_form(str(error.expected))}{_about(error.schema)}",
}
