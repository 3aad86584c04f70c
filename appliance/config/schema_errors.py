"""Validation by the JSON Schema, with errors that say what is wrong and what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, validators

from appliance.config.base import FREE_PREFIX
from appliance.config.engine import OWNED, EngineConfig
from appliance.config.json_schema import (
    Schema,
    engine_schema,
    json_types,
    registry,
    schemas_at,
    types_of,
    validation_schema,
)
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import UNKNOWN, DataPath, Diagnostic, RawConfig, quote, with_value
from appliance.core.suggestions import did_you_mean, known_names, nearest

# jsonschema's ValidationError, by whose stub every attribute may be unset.
_Error = Any

# Secrets have digits, or are longer.
_PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z _./-]{,19}")

_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}

_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}

_COUNTS = {
    "minLength": ("at least", "character", "characters"),
    "maxLength": ("at most", "character", "characters"),
    "minItems": ("at least", "entry", "entries"),
    "maxItems": ("at most", "entry", "entries"),
    "minProperties": ("at least", "key", "keys"),
}

# A key that is in more places is named by none of them.
_MAX_PLACES = 2

_FIRST_MODEL = "must be a list: models: [{name: NAME, class: generative, storage: {uri: hf://OWNER/NAME}}]"

_SENTENCE_END = re.compile(r"(?<=[\w)`]\.)\s+(?=[A-Z`])")


def check(raw: RawConfig) -> Iterator[Diagnostic]:
    """Every error that the schema finds in the config."""
    for error in _validator().iter_errors(raw.data):
        yield from _diagnostics(raw, error)


def with_guessed_classes(raw: RawConfig) -> RawConfig:
    """The config with the class that each model means whose class or the key `class` is misspelt."""
    for path, model in raw.models():
        keys = (
            ["class"] if "class" in model else [key for key in model if nearest(key, _keys_at(raw, path)) == ["class"]]
        )
        value = model[keys[0]] if len(keys) == 1 else None
        meant = nearest(value, MODEL_CONFIGS) if isinstance(value, str) else []
        if len(meant) == 1 and {keys[0]: value} != {"class": meant[0]}:
            rest = {key: item for key, item in model.items() if key not in keys}
            raw = replace(raw, data=with_value(raw.data, path, {"class": meant[0], **rest}))
    return raw


@cache
def _validator() -> Draft202012Validator:
    """A validator that accepts UNKNOWN everywhere, but for the tag of a union: it chooses none of the members."""
    keywords = {
        name: check if name == "const" else _unless_unknown(check)
        for name, check in Draft202012Validator.VALIDATORS.items()
    }
    extended: type[Draft202012Validator] = validators.extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call] # its stub has no types
    return extended(validation_schema(), registry=registry())


def _unless_unknown(check: Callable[..., Any]) -> Callable[..., Any]:
    return lambda validator, value, instance, schema: (
        () if instance is UNKNOWN else check(validator, value, instance, schema)
    )


def _diagnostics(raw: RawConfig, error: _Error) -> Iterator[Diagnostic]:
    path, schema = tuple(error.absolute_path), error.schema
    known: Schema = schema.get("properties", {})
    match error.validator:
        case "required":
            misspelt = {near for key in error.instance if key not in known for near in nearest(key, known)}
            for key in error.validator_value:
                # A misspelt key is one error, not two.
                if key not in error.instance and key not in misspelt:
                    message = f"is missing; must be given{_about(known.get(key, {}))}"
                    yield Diagnostic((*path, key), message, raw.location(path))
        case "additionalProperties":
            for key in error.instance:
                if key not in known and not key.startswith(FREE_PREFIX):
                    yield raw.key_diagnostic((*path, key), _unknown_key(raw, path, key, known))
        case "anyOf" | "oneOf":
            yield from _alternatives(raw, error)
        case "type" if "enum" in schema:
            # The choices are all of this type, so that they are violated, too.
            return
        case _:
            yield _diagnostic(raw, error, _must(raw, error))


def _alternatives(raw: RawConfig, error: _Error) -> Iterator[Diagnostic]:
    """The errors of the one alternative that has the type of the value, or one error that names them all."""
    kinds = json_types(error.instance)
    fits = [index for index, choice in enumerate(error.validator_value) if kinds & set(types_of(choice))]
    if len(fits) != 1:
        yield _diagnostic(raw, error, f"be {_phrase(error.schema)}")
    for inner in error.context or ():
        if fits == [inner.schema_path[0]]:
            yield from _diagnostics(raw, inner)


def _unknown_key(raw: RawConfig, path: DataPath, key: str, known: Iterable[str]) -> str:
    name = key.replace("-", "_")
    if path[-2:] in (("engine", "args"), ("engine", "serving")) and name in OWNED:
        return f"is not set here; {OWNED[name]}"
    if path[-1:] == ("engine",):
        # It chooses another schema than that of the keys beside it.
        known = {*known, "python"}
        if name in EngineConfig.model_fields and raw.find((*path, "backend")) == "onnx":
            return "is vLLM's, and engine.backend is onnx; must be left out"
    if name == "model" and not path and isinstance(raw.find((key,)), str):
        return f"unknown key; {_FIRST_MODEL}"
    remedy = _vllm_remedy(raw, path, name) or did_you_mean(key, known) or _moved_key(raw, path, name, known)
    return f"unknown key; {remedy or known_names('keys', known)}"


def _vllm_remedy(raw: RawConfig, path: DataPath, name: str) -> str | None:
    """Where a setting belongs that has this name in vLLM; None for any other key."""
    remedy = OWNED.get(name) or (
        f"must be set as engine.args.{name}" if name in engine_schema()["properties"] else None
    )
    is_of_model = path[:1] == ("models",) and path[2:] in ((), ("engine",), ("engine", "serving"), ("layout",))
    if remedy is None or not is_of_model or raw.find((*path[:2], "engine", "python")) is not None:
        return None
    return remedy if "engine" in _keys_at(raw, path[:2]) else None


def _moved_key(raw: RawConfig, path: DataPath, name: str, known: Iterable[str]) -> str | None:
    """Where a key belongs that a mapping above or below has; None for any other key."""
    if below := [f"{other}.{name}" for other in sorted(known) if name in _keys_at(raw, (*path, other))]:
        return f"must be set as {' or '.join(below)}" if len(below) <= _MAX_PLACES else None
    if path and isinstance(path[-1], str) and name in _keys_at(raw, path[:-1]):
        return f"must be set beside {path[-1]}, not below it"
    return None


def _keys_at(raw: RawConfig, path: DataPath) -> frozenset[str]:
    return frozenset(key for schema in schemas_at(raw.data, path) for key in schema.get("properties", ()))


def _about(schema: Schema) -> str:
    """The first sentence of a description, after a colon."""
    paragraph = str(schema.get("description", "")).partition("\n\n")[0]
    about = " ".join(_SENTENCE_END.split(paragraph)[0].split())
    return f": {about}" if about else ""


def _diagnostic(raw: RawConfig, error: _Error, must: str) -> Diagnostic:
    """The error of a value that must do what `must` says."""
    path, value = tuple(error.absolute_path), error.instance
    choices = error.validator_value if error.validator in ("anyOf", "oneOf") else [error.schema]
    types = {each for schema in choices for each in types_of(schema)}
    if error.validator in ("type", "anyOf", "oneOf") and types & {"object", "array"} and isinstance(value, str):
        keys = {key for schema in schemas_at(raw.data, path) for key in schema.get("required", ())}
        form = f" with the key {next(iter(keys))}" if len(keys) == 1 and must == "be a mapping" else ""
        found = raw.diagnostic(path, f"is {raw.quote(path)}; must {must}{form}")
        # A part of the config may hold secrets, and so may text in its place.
        if _PLAIN_TEXT.fullmatch(value) and not (found.is_secret or found.has_secret_key or found.location.is_secret):
            return found
        return replace(found, message=f"is text; must {must}{form}", is_secret=True)
    if value is None:
        fault = "is empty"
    elif isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        fault = f"is a {kind}" if value else f"is an empty {kind}"
    else:
        fault = f"is {raw.quote(path)}"
    return raw.diagnostic(path, f"{fault}; must {must}")


def _must(raw: RawConfig, error: _Error) -> str:
    """What a value must do that violates a keyword, such as "be at least 1"."""
    value, expected, schema = error.instance, error.validator_value, error.schema
    # A suggestion would give most of a secret away.
    is_open_text = isinstance(value, str) and not raw.secrets(tuple(error.absolute_path))
    match error.validator:
        case "type":
            hint = ""
            if isinstance(value, int | float) and "string" in types_of(schema):
                hint = ", in quotes"
            elif is_open_text and re.fullmatch(r"[-+.\d]+|true|false", value):
                hint = ", without quotes"
            return f"be {_phrase(schema)}{hint}"
        case "enum" | "const":
            choices = [expected] if error.validator == "const" else expected
            words = [choice for choice in choices if isinstance(choice, str)]
            hint = did_you_mean(value, words) if is_open_text else ""
            return f"be {_one_of(choices)}" + (f"; {hint}" if hint else "")
        case "pattern":
            return str(schema.get("patternErrorMessage", f"match {expected}")).removeprefix("must ")
        case "uniqueItems":
            return "have each entry once"
        case str(keyword) if keyword in _BOUNDS and "errorMessage" in schema:
            return str(schema["errorMessage"]).removeprefix("must ")
        case str(keyword) if keyword in _BOUNDS:
            return f"be {_BOUNDS[keyword]} {expected}"
        case str(keyword) if keyword in _COUNTS:
            bound, one, many = _COUNTS[keyword]
            return f"have {bound} {expected} {one if expected == 1 else many}"
    return f"satisfy {error.validator}: {quote(expected)}"


def _phrase(schema: Schema) -> str:
    """What a value must be by its schema, such as "text or a list"."""
    if "enum" in schema or "const" in schema:
        return _one_of(schema.get("enum") or [schema["const"]])
    # Empty is right as well where null is a type, but nobody means to write it.
    names = [_WORDS[name] for name in types_of(schema) if name in _WORDS]
    names += [_phrase(other) for keyword in ("anyOf", "oneOf") for other in schema.get(keyword, ())]
    return " or ".join(dict.fromkeys(filter(None, names)))


def _one_of(choices: Sequence[Any]) -> str:  # Any: JSON
    words = [quote(choice) for choice in choices if choice is not None]
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
