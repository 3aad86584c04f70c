"""The environment over the file: ``APPLIANCE__SERVER__PORT=9000``, read by pydantic-settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from appliance.config.base import BaseConfig
from appliance.config.model_entries import named_models
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import RawConfig
from appliance.config.root import Config
from appliance.config.schema_lookup import SchemaLookup, converted
from appliance.config.source_location import DataPath, Diagnostic, Source, SourceLocation, is_unicode, printable
from appliance.core.service_links import service_links
from appliance.core.suggestions import did_you_mean, known_names

PREFIX = "APPLIANCE__"
_DELIMITER = "__"
_MODELS = f"models{_DELIMITER}"


class _UnknownError(Exception):
    """A variable names no setting; its text is the message."""


def lay(draft: RawConfig, environ: Mapping[str, str], shape: SchemaLookup) -> tuple[RawConfig, list[Diagnostic]]:
    """The draft with the environment's settings laid over it, and a fault for each that names nothing."""
    faults: list[Diagnostic] = []
    # A whole section goes before its parts, whatever the order of the variables.
    settings = {name for name in environ if name.upper().startswith(PREFIX)} - service_links(environ, PREFIX)
    names = sorted(settings, key=lambda name: (len(name), name))
    for name in names:
        text, place = environ[name], SourceLocation(Source(f"environment {printable(name)}"))
        try:
            path = _path(draft, name[len(PREFIX) :].lower())
        except _UnknownError as unknown:
            faults.append(Diagnostic((), str(unknown), place))
            continue
        if draft.goes_into_a_list(path):
            faults.append(Diagnostic((), "goes into a list; must set the list as a whole, in YAML", place))
        elif not is_unicode(text):
            faults.append(Diagnostic(path, "is not UTF-8 text; must be UTF-8", place))
        else:
            draft = draft.with_value(path, converted(text, shape.at(draft.data, path)), place, is_text=True)
    return draft, faults


def slug(name: str) -> str:
    """
    A model's name as it is written in the name of a variable, in lower case: ``org/Model-1.5`` is ``org_model_1_5``.
    """
    return re.sub("[^a-z0-9]", "_", name.lower())


def _path(draft: RawConfig, name: str) -> DataPath:
    """The path of the setting that the variable with this name, without the prefix, means."""
    if not name.startswith(_MODELS):
        return _path_in(Config, name)
    rest = name.removeprefix(_MODELS)
    # A name may begin with another model's name and the delimiter: the longest is meant.
    models = [model for model in _models(draft) if rest.startswith(model.prefix)]
    longest = max((len(model.prefix) for model in models), default=0)
    found = [model for model in models if len(model.prefix) == longest]
    if not found:
        known = (model.prefix.removesuffix(_DELIMITER) for model in _models(draft))
        raise _UnknownError(_no_such("model", rest.split(_DELIMITER)[0], known))
    if len(found) > 1:
        raise _UnknownError("means more than one model; must mean one, so rename one of them")
    return (*found[0].path, *_path_in(found[0].config, rest[longest:]))


def _path_in(config: type[BaseConfig], name: str) -> DataPath:
    value: Any = _OneVariable(config, name)()
    path: DataPath = ()
    while isinstance(value, dict) and value:
        ((key, value),) = value.items()
        path = (*path, key)
    if not path:
        known = (field.alias or key for key, field in config.model_fields.items())
        raise _UnknownError(_no_such("setting", name.split(_DELIMITER)[0], known))
    return path


@dataclass(frozen=True, slots=True)
class _ModelEntry:
    prefix: str
    path: DataPath
    config: type[BaseConfig]


def _models(draft: RawConfig) -> Iterator[_ModelEntry]:
    for path, name, class_name in named_models(draft):
        if class_name in MODEL_CONFIGS:
            yield _ModelEntry(slug(name) + _DELIMITER, path, MODEL_CONFIGS[class_name])


def _no_such(what: str, name: str, known: Iterable[str]) -> str:
    words = {word.upper() for word in known}
    remedy = did_you_mean(name.upper(), words) or known_names(f"{what}s", words)
    return f"unknown {what} {printable(name.upper())}; {remedy}"


class _OneVariable(EnvSettingsSource):
    """pydantic-settings' reading of one variable's name, so that a fault can name it."""

    def __init__(self, config: type[BaseConfig], name: str) -> None:
        self._variables = {name: "value"}
        # The source reads only the fields of the class, which any model has.
        super().__init__(
            cast("type[BaseSettings]", config),
            case_sensitive=False,
            env_prefix="",
            env_nested_delimiter=_DELIMITER,
        )

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._variables

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ARG002 - as above
        """The text as it is: the schema says later what it is converted to."""
        return value
