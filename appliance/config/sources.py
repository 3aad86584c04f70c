"""The sources of a config beside its file: the environment, and `--set` over both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from appliance.config.base import FREE_PREFIX, BaseConfig
from appliance.config.json_schema import Schema, json_types, schemas_at, types_of
from appliance.config.masking import MASK, is_private_name, mask
from appliance.config.models import MODEL_CONFIGS, ModelConfig
from appliance.config.raw_config import (
    UNKNOWN,
    DataPath,
    Diagnostic,
    RawConfig,
    Source,
    SourceLocation,
    dotted,
    is_unicode,
    printable,
    scalars,
    with_value,
)
from appliance.config.root import Config
from appliance.config.yaml_parser import parse
from appliance.core.errors import ConfigError
from appliance.core.service_links import service_links
from appliance.core.suggestions import did_you_mean, known_names

PREFIX = "APPLIANCE__"

_ASSIGNMENT = "must be a path, = and a value in YAML, such as server.port=9000"
_LIST = "goes into a list, whose entries have no paths; must set the list as a whole, such as [a, b]"
_NO_KEYS = "which is no mapping; must set it as a whole, such as {key: value}"

Entry = TypeVar("Entry")

_FLAGS = {"1": True, "yes": True, "on": True, "0": False, "no": False, "off": False}


def merge(raw: RawConfig, environ: Mapping[str, str], overrides: Sequence[str]) -> RawConfig:
    """The config with the environment and then each of the overrides merged into it.

    Texts from outside are converted first: a later override may set a key in a part, or a model, that a text brings.
    """
    raw = _convert_texts(raw)
    variables = {name for name in environ if name.upper().startswith(PREFIX)} - service_links(environ, PREFIX)
    of_models = {name for name in variables if name.upper().startswith(f"{PREFIX}MODELS__")}
    # One variable may have the list of models, and others keys of these.
    for names in (variables - of_models, of_models):
        raw = _convert_texts(_with_variables(raw, {name: environ[name] for name in names}))
    for override in overrides:
        raw = _with_option(raw, override)
    return raw


class _OverrideError(Exception):
    """An override cannot be merged; its text is the message."""


@dataclass(frozen=True, slots=True)
class _Notation:
    """How an override writes the path of a key."""

    delimiter: str
    name: Callable[[str], str]
    """A model's name as it is written in a path."""

    shown: Callable[[str], str]
    """A part of a path as it is shown in messages."""


# A model's name in a variable: ``org/Model-1.5`` is ``org_model_1_5``.
_VARIABLE = _Notation("__", lambda name: re.sub("[^a-z0-9]", "_", name.lower()), str.upper)
_OPTION = _Notation(".", str, str)


def _with_variables(raw: RawConfig, variables: Mapping[str, str]) -> RawConfig:
    models = _models(raw, _VARIABLE)
    # A model has the name that a variable gives it, and the one before.
    for slug, paths in list(models.items()):
        for name, text in variables.items():
            if name.upper() == f"{PREFIX}MODELS__{slug}__NAME".upper():
                models.setdefault(_VARIABLE.name(text), {}).update(paths)
    # A whole part goes before its keys, whatever the order of the variables.
    for name, text in sorted(variables.items(), key=lambda item: (len(item[0]), item[0])):
        location = SourceLocation(Source(f"environment {printable(name)}"))
        try:
            path = _path(name[len(PREFIX) :].lower(), _VARIABLE, models)
            if not is_unicode(text):
                raise _OverrideError("is not UTF-8 text; must be UTF-8")
            value = _convert_text(text, schemas_at(raw.data, path))
            # A mapping is merged; any other value gets its type later, beside the values that are merged with it.
            raw = _override(raw, path, value if isinstance(value, dict) else text, location, is_text=True)
        except _OverrideError as error:
            raw = replace(raw, errors=[*raw.errors, Diagnostic((), str(error), location)])
    return raw


def _with_option(raw: RawConfig, override: str) -> RawConfig:
    location = SourceLocation(Source(f"--set {_redact(override)}"))
    name, equals, text = override.partition("=")
    try:
        if not is_unicode(override):
            raise _OverrideError("is not UTF-8 text; must be UTF-8")
        if not equals or not all(name.split(".")):
            raise _OverrideError(f"is not an assignment; {_ASSIGNMENT}")
        if re.search(r"\[\d*\]", name):
            raise _OverrideError(_LIST)
        path = _path(name, _OPTION, _models(raw, _OPTION))
        parsed = parse(text, location.source)
        raw = _override(raw, path, parsed.data, location)
        errors = [replace(error, path=()) for error in parsed.errors]
    except _OverrideError as error:
        errors = [Diagnostic((), str(error), location)]
    except ConfigError as error:
        errors = [Diagnostic((), problem.message, location) for problem in error.problems]
    return replace(raw, errors=[*raw.errors, *errors])


Models = dict[str, dict[DataPath, type[ModelConfig]]]
"""The paths of models and their classes, by their names."""


def _models(raw: RawConfig, notation: _Notation) -> Models:
    models: Models = {}
    for path, model in raw.models():
        config = MODEL_CONFIGS.get(str(model.get("class")))
        if config is not None and isinstance(name := model.get("name"), str):
            models.setdefault(notation.name(name), {})[path] = config
    return models


def _path(name: str, notation: _Notation, models: Models) -> DataPath:
    """The path that an override names.

    Raises:
        _OverrideError: there is no such model or key, or more than one model.
    """
    delimiter = notation.delimiter
    config: type[BaseConfig] = Config
    above: DataPath = ()
    if name.startswith(f"models{delimiter}"):
        name = name.removeprefix(f"models{delimiter}")
        # Of several models the one with the longest name.
        model = max((model for model in models if name.startswith(f"{model}{delimiter}")), key=len, default=None)
        if model is None:
            raise _unknown("model", name.split(delimiter)[0], models, notation)
        if len(models[model]) > 1:
            raise _OverrideError("means more than one model; must mean one, so rename one of them")
        ((above, config),) = models[model].items()
        name = name.removeprefix(f"{model}{delimiter}")
    keys = name.split(delimiter)
    known = [field.alias or field_name for field_name, field in config.model_fields.items()]
    if keys[0] not in known and not keys[0].startswith(FREE_PREFIX):
        raise _unknown("setting", keys[0], known, notation)
    return (*above, *keys)


def _unknown(kind: str, name: str, known: Iterable[str], notation: _Notation) -> _OverrideError:
    name, words = notation.shown(name), set(map(notation.shown, known))
    hint = did_you_mean(name, words) or known_names(f"{kind}s", words)
    return _OverrideError(f"unknown {kind} {printable(name)}; {hint}")


def _redact(override: str) -> str:
    """An override without the value of a secret key, and without a value that is more than a word of text."""
    name, equals, text = override.partition("=")
    first = next((part for part in re.split(r"[^\w-]+", name) if is_private_name(part)), None)
    if first is not None:
        # What follows it is a key at best.
        return f"{printable(name[: name.index(first) + len(first)])}{f'={MASK}' if equals else MASK}"
    if text.lstrip()[:1] in {"*", "!", "&", "|", ">", "{", "["}:
        return f"{printable(name)}={MASK}"
    return printable(mask(override, 0)[0])


def _override(
    raw: RawConfig, path: DataPath, value: Any, location: SourceLocation, *, is_text: bool = False
) -> RawConfig:
    """The config with `value` at `path`: a mapping is merged key by key, anything else replaces what is there.

    `is_text` says that the value was text outside the file, which is secret.

    Raises:
        _OverrideError: a value above it has no keys.
    """
    if isinstance(value, dict) and isinstance(raw.find(path), dict):
        for key, item in value.items():
            raw = _override(raw, (*path, key), item, location, is_text=is_text)
        return raw
    above = [path[:depth] for depth in range(1, len(path))]
    for depth, part in enumerate(above, 1):
        if isinstance(path[depth], str) and (found := raw.find(part)) is not None and not isinstance(found, dict):
            if found is UNKNOWN:
                return raw
            raise _OverrideError(_LIST if isinstance(found, list) else f"goes into {dotted(part)}, {_NO_KEYS}")
    made = {part: location for part in above if part not in raw.locations}
    texts = {leaf: frozenset({str(item)} - {""}) for leaf, item in scalars(value, path)} if is_text else {}
    return replace(
        raw,
        data=with_value(raw.data, path, value),
        locations={**_without(raw.locations, path), **made, path: location},
        key_locations={**_without(raw.key_locations, path), path: location},
        texts={**_without(raw.texts, path), **texts},
    )


def _without(entries: Mapping[DataPath, Entry], path: DataPath) -> Mapping[DataPath, Entry]:
    """The entries that are not at `path` or below it."""
    return {other: entry for other, entry in entries.items() if other[: len(path)] != path}


def _convert_texts(raw: RawConfig) -> RawConfig:
    """The config with each text from outside converted to the type that the schema asks for, where that is possible."""
    for path, secrets in raw.texts.items():
        text = raw.get(path)
        value = _convert_text(text, schemas_at(raw.data, path)) if isinstance(text, str) else text
        if value is not text:
            leaves = scalars(value, path) if secrets and isinstance(value, dict | list) else ()
            texts = {**raw.texts, **{leaf: frozenset({str(item)} - {""}) for leaf, item in leaves}}
            raw = replace(raw, data=with_value(raw.data, path, value), texts=texts)
    return raw


def _convert_text(text: str, schemas: Iterable[Schema]) -> Any:  # Any: JSON
    """The text as a value of a type that one of the schemas allows; unchanged where text is allowed or nothing fits."""
    types = {name for schema in schemas if "$ref" not in schema for name in types_of(schema)}
    if not types or "string" in types:
        return text
    try:
        parsed = parse(text, Source(""))
    except ConfigError:
        return text
    if not parsed.errors and json_types(parsed.data) & types:
        return parsed.data
    # Flags of the environment are often 1 or yes, which YAML 1.2 does not read as true.
    return _FLAGS.get(text.strip().lower(), text) if "boolean" in types else text
