"""The sources of a config, merged by pydantic-settings: its file, the environment over it, and `--set` over both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from appliance.config.base import FREE_PREFIX, BaseConfig
from appliance.config.masking import MASK, is_private_name, mask
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import RawConfig
from appliance.config.root import Config
from appliance.config.schema_lookup import SchemaLookup, convert_text, convert_texts
from appliance.config.source_location import DataPath, Diagnostic, Source, SourceLocation, is_unicode, printable
from appliance.config.yaml_parser import parse
from appliance.core.errors import ConfigError
from appliance.core.service_links import service_links
from appliance.core.suggestions import did_you_mean, known_names

PREFIX = "APPLIANCE__"

_ASSIGNMENT = "must be a path, = and a value in YAML, such as server.port=9000"
_LIST = "goes into a list, whose entries have no paths; must set the list as a whole, such as [a, b]"


def merge(
    raw: RawConfig, environ: Mapping[str, str], overrides: Sequence[str], lookup: SchemaLookup
) -> tuple[RawConfig, list[Diagnostic]]:
    """The config with the environment and then each of the overrides merged into it, and their errors.

    Texts from outside are converted first: a later override may set a key in a part, or a model, that a text brings.
    """
    errors: list[Diagnostic] = []
    raw = convert_texts(raw, lookup)
    variables = {name for name in environ if name.upper().startswith(PREFIX)} - service_links(environ, PREFIX)
    of_models = {name for name in variables if name.upper().startswith(f"{PREFIX}MODELS__")}
    # One variable may have the list of models, and others keys of these.
    for names in (variables - of_models, of_models):
        sources = _environment(raw, {name: environ[name] for name in names}, lookup, errors)
        raw = convert_texts(_merge(raw, sources), lookup)
    for override in overrides:
        raw = _merge(raw, _option(raw, override, errors))
    return raw, errors


def _merge(raw: RawConfig, overrides: Iterable[PydanticBaseSettingsSource]) -> RawConfig:
    """The config with some sources merged into it, the later ones over the earlier ones."""
    sources = [_FileSource(raw), *overrides]
    if len(sources) == 1:
        return raw

    class Settings(BaseSettings):
        """The merged data. It is validated later, with the locations of its values."""

        model_config = SettingsConfigDict(extra="allow")

        @classmethod
        def settings_customise_sources(cls, *_: Any, **__: Any) -> tuple[PydanticBaseSettingsSource, ...]:
            # The first one has the highest priority.
            return tuple(reversed(sources))

    return _Flattening(raw).flatten(Settings().model_extra or {})


@dataclass(frozen=True, slots=True)
class _Override:
    """A value of the environment or of `--set`: a scalar, or a list of overrides."""

    value: Any
    location: SourceLocation
    is_text: bool = False
    """Whether it was text outside the file, which is secret and has the type that the schema asks for."""


class _Mapping(dict[str, Any]):
    """A mapping that an override gives as a whole; its values are overrides and mappings."""

    def __init__(self, items: Mapping[str, Any], location: SourceLocation) -> None:
        super().__init__(items)
        self.location = location

    def copy(self) -> _Mapping:
        """A mapping that is still given as a whole; pydantic-settings changes copies."""
        return _Mapping(self, self.location)


def _wrap(value: Any, location: SourceLocation, *, is_text: bool) -> _Override | _Mapping:
    if isinstance(value, dict):
        return _Mapping({key: _wrap(item, location, is_text=is_text) for key, item in value.items()}, location)
    if isinstance(value, list):
        value = [_wrap(item, location, is_text=is_text) for item in value]
    return _Override(value, location, is_text)


class _FileSource(PydanticBaseSettingsSource):
    """The data of the file; `models` is a mapping by index, because pydantic-settings merges mappings alone."""

    def __init__(self, raw: RawConfig) -> None:
        super().__init__(BaseSettings)
        self._raw = raw

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("the settings have no fields")

    def __call__(self) -> dict[str, Any]:
        data: dict[str, Any] = self._raw.data
        models = data.get("models")
        return data | {"models": dict(enumerate(models))} if isinstance(models, list) else data


@dataclass(frozen=True, slots=True)
class _Target:
    """A part of the config whose keys can be overridden: the root, or one model."""

    path: DataPath
    config: type[BaseConfig]


class _OverrideSource(EnvSettingsSource):
    """Overrides of one target by their names: `SERVER__PORT` of the environment, or `server.port` of `--set`."""

    def __init__(
        self,
        raw: RawConfig,
        target: _Target,
        overrides: Mapping[str, _Override | _Mapping],
        delimiter: str,
        errors: list[Diagnostic],
    ) -> None:
        self._raw = raw
        self._target = target
        self._overrides = overrides
        self._errors = errors
        # The source reads only the fields of the class, which any model has.
        settings = cast("type[BaseSettings]", target.config)
        super().__init__(settings, case_sensitive=True, env_prefix="", env_nested_delimiter=delimiter)

    def _load_env_vars(self) -> Mapping[str, Any]:
        return self._overrides

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:  # noqa: ARG002 - as in the base class
        """The value as it is; the schema says what type a text has."""
        return value

    def __call__(self) -> dict[str, Any]:
        data = self._without_conflicts(super().__call__(), self._raw.find(self._target.path))
        for part in reversed(self._target.path):
            data = {part: data}
        return data

    def _without_conflicts(self, data: dict[Any, Any], file: Any) -> dict[Any, Any]:
        """The data without keys below something in the file that is not a mapping, which is an error there or here."""
        kept = {}
        for key, value in data.items():
            below = file.get(key) if isinstance(file, dict) else None
            if not isinstance(value, dict) or isinstance(value, _Mapping):
                kept[key] = value
            elif below is None or isinstance(below, dict):
                kept[key] = self._without_conflicts(value, below)
            elif isinstance(below, list):
                self._errors += [Diagnostic((), _LIST, location) for location in _locations(value)]
        return kept


def _locations(value: Any) -> Iterator[SourceLocation]:
    if isinstance(value, _Override | _Mapping):
        yield value.location
    elif isinstance(value, dict):
        for item in value.values():
            yield from _locations(item)


class _UnknownNameError(Exception):
    """An override names nothing; its text is the message."""


def _environment(
    raw: RawConfig, variables: Mapping[str, str], lookup: SchemaLookup, errors: list[Diagnostic]
) -> Iterator[PydanticBaseSettingsSource]:
    found: dict[_Target, dict[str, _Override | _Mapping]] = {}
    # A whole part goes before its keys, whatever the order of the variables.
    for name in sorted(variables, key=lambda name: (len(name), name)):
        location = SourceLocation(Source(f"environment {printable(name)}"))
        try:
            target, key = _target(raw, name[len(PREFIX) :].lower(), "__", _slug, str.upper)
        except _UnknownNameError as error:
            errors.append(Diagnostic((), str(error), location))
            continue
        if is_unicode(text := variables[name]):
            value = convert_text(text, lookup.at(raw.data, (*target.path, *key.split("__"))))
            # A mapping is merged; any other value gets its type later, beside the values that are merged with it.
            override = _wrap(value if isinstance(value, dict) else text, location, is_text=True)
            found.setdefault(target, {})[key] = override
        else:
            errors.append(Diagnostic((), "is not UTF-8 text; must be UTF-8", location))
    for target, values in found.items():
        yield _OverrideSource(raw, target, values, "__", errors)


def _slug(name: str) -> str:
    """A model's name as it is written in the name of a variable: ``org/Model-1.5`` is ``org_model_1_5``."""
    return re.sub("[^a-z0-9]", "_", name.lower())


def _option(raw: RawConfig, override: str, errors: list[Diagnostic]) -> Iterator[PydanticBaseSettingsSource]:
    location = SourceLocation(Source(f"--set {_redact(override)}"))
    name, equals, text = override.partition("=")
    try:
        if not is_unicode(override):
            raise _UnknownNameError("is not UTF-8 text; must be UTF-8")
        if not equals or not all(name.split(".")):
            raise _UnknownNameError(f"is not an assignment; {_ASSIGNMENT}")
        if re.search(r"\[\d*\]", name):
            raise _UnknownNameError(_LIST)
        target, key = _target(raw, name, ".", str, str)
        value, faults = parse(text, location.source)
    except _UnknownNameError as error:
        errors.append(Diagnostic((), str(error), location))
    except ConfigError as error:
        errors += [Diagnostic((), problem.message, location) for problem in error.problems]
    else:
        errors += [replace(fault, path=()) for fault in faults]
        yield _OverrideSource(raw, target, {key: _wrap(value.data, location, is_text=False)}, ".", errors)


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


def _target(
    raw: RawConfig, name: str, delimiter: str, slug: Callable[[str], str], shown: Callable[[str], str]
) -> tuple[_Target, str]:
    """The part of the config that an override is for, and the name of its key there.

    Raises:
        _UnknownNameError: there is no such model or key, or more than one model.
    """
    target, key = _Target((), Config), name
    prefix = f"models{delimiter}"
    if name.startswith(prefix):
        rest = name.removeprefix(prefix)
        target, model = _model(raw, rest, delimiter, slug, shown)
        key = rest.removeprefix(f"{model}{delimiter}")
    first = key.split(delimiter)[0]
    known = [field.alias or field_name for field_name, field in target.config.model_fields.items()]
    if first not in known and not first.startswith(FREE_PREFIX):
        raise _UnknownNameError(_no_such("setting", shown(first), map(shown, known)))
    return target, key


def _model(
    raw: RawConfig, name: str, delimiter: str, slug: Callable[[str], str], shown: Callable[[str], str]
) -> tuple[_Target, str]:
    """The model whose name `name` begins with, and that name; of several the longest."""
    models: dict[str, list[_Target]] = {}
    for path, model in raw.models():
        config = MODEL_CONFIGS.get(str(model.get("class")))
        if config is not None and isinstance(model.get("name"), str):
            models.setdefault(slug(model["name"]), []).append(_Target(path, config))
    found = max((model for model in models if name.startswith(f"{model}{delimiter}")), key=len, default=None)
    if found is None:
        raise _UnknownNameError(_no_such("model", shown(name.split(delimiter)[0]), map(shown, models)))
    if len(models[found]) > 1:
        raise _UnknownNameError("means more than one model; must mean one, so rename one of them")
    return models[found][0], found


def _no_such(kind: str, name: str, known: Iterable[str]) -> str:
    words = set(known)
    return f"unknown {kind} {printable(name)}; {did_you_mean(name, words) or known_names(f'{kind}s', words)}"


class _Flattening:
    """Turns the merged data back into raw config, with the locations of whatever each value came from."""

    def __init__(self, file: RawConfig) -> None:
        self._file = file
        self._locations: dict[DataPath, SourceLocation] = {(): file.location(())}
        self._key_locations: dict[DataPath, SourceLocation] = {}
        self._texts: dict[DataPath, frozenset[str]] = {}

    def flatten(self, data: dict[str, Any]) -> RawConfig:
        """The raw config of the merged data."""
        models = data.get("models")
        if isinstance(models, dict) and all(isinstance(index, int) for index in models):
            data = data | {"models": list(models.values())}
        flat = self._value(data, ())
        return replace(
            self._file, data=flat, locations=self._locations, key_locations=self._key_locations, texts=self._texts
        )

    def _value(self, value: Any, path: DataPath) -> Any:
        self._locate(value, path)
        if isinstance(value, _Override):
            if value.is_text and not isinstance(value.value, list):
                self._texts[path] = frozenset({str(value.value)} - {""})
            value = value.value
        elif path in self._file.texts:
            self._texts[path] = self._file.texts[path]
        if isinstance(value, dict):
            return {key: self._value(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def _locate(self, value: Any, path: DataPath) -> None:
        file = self._file
        if isinstance(value, _Override | _Mapping):
            self._locations[path] = self._key_locations[path] = value.location
            return
        location = file.locations.get(path)
        if location is None and isinstance(value, dict):
            # A part that the file lacks stands where the first of its keys does.
            location = next(_locations(value), None)
        if location is not None:
            self._locations[path] = location
        if path in file.key_locations:
            self._key_locations[path] = file.key_locations[path]
