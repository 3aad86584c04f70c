"""From a file to the config: read, resolve references, merge the environment and `--set`, validate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.config.interpolation import resolve
from appliance.config.json_schema import engine_schema, validation_schema
from appliance.config.raw_config import RawConfig
from appliance.config.root import Config
from appliance.config.schema_errors import check
from appliance.config.schema_lookup import SchemaLookup
from appliance.config.source_location import DataPath, Diagnostic, SourceLocation
from appliance.config.sources import merge
from appliance.config.storage import LOCK_FILE_NAME
from appliance.config.validators import VALIDATORS, Validator
from appliance.config.yaml_parser import read
from appliance.core.errors import ConfigError, Problem

# The types of pydantic's errors that are raised by validators of ours.
_OURS = ("value_error", "assertion_error")


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid config, and what must not be shown of it."""

    config: Config
    secrets: frozenset[str] = frozenset()
    """Texts from references and the environment, and keys and passwords: logs and listings show ``***`` instead."""

    hidden: frozenset[DataPath] = frozenset()
    """The paths of values with such a text in them, models by their names."""

    files: Mapping[Path, str] = field(default_factory=dict)
    """Every file that was read, with its SHA-256."""

    path: Path | None = None
    """The config's own file; None where a program made the config."""

    overrides: tuple[str, ...] = ()
    """The `--set` options that were merged into the file."""

    raw: RawConfig | None = field(default=None, repr=False, compare=False)
    """The file as it was read, for errors that are found later."""

    validators: Sequence[Validator] = field(default=(), repr=False, compare=False)
    """The validators of other packages that it was loaded with."""

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the config's own file, as `sha256sum` prints it."""
        return None if self.path is None else self.files.get(self.path)

    def reload(self) -> LoadedConfig:
        """The config that the file has now.

        Raises:
            ConfigError: something is wrong.
        """
        if self.path is None:
            raise AssertionError("this config has no file; this is a bug")
        return load(self.path, self.overrides, validators=self.validators)

    def problem(self, path: DataPath, message: str) -> Problem:
        """An error of the value at `path`, with its location in the file."""
        if self.raw is None:
            raise AssertionError("this config has no file; this is a bug")
        return self.raw.diagnostic(path, message).problem(self.raw.secrets(()))


def load(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    validators: Sequence[Validator] = (),
) -> LoadedConfig:
    """Read and validate the config at `path`, with the environment and then the `overrides` merged into it.

    An override reads ``server.port=9000``. `environ` is the environment; None means that of this process. `validators`
    run beside those of this package: they need packages that `config` must not import.

    Raises:
        ConfigError: something is wrong; it carries every problem found.
    """
    validated = _validate(path, overrides, os.environ if environ is None else environ, validators)
    validated.raise_errors([*validated.errors, *validated.unresolved])
    raw, config = validated.raw, validated.config
    if config is None:
        raise AssertionError("a config without errors is built; this is a bug")
    secret = dict(_secrets(raw, validated.lookup))
    return LoadedConfig(
        _with_lock(config, path),
        frozenset[str]().union(*secret.values()),
        frozenset(_by_name(raw, secret_path) for secret_path in secret),
        raw.files,
        path,
        tuple(overrides),
        raw,
        validators,
    )


def check_without_secrets(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    validators: Sequence[Validator] = (),
) -> Sequence[Problem]:
    """Validate like `load`, and take references that cannot be resolved for valid values; return those references.

    Raises:
        ConfigError: something else is wrong.
    """
    validated = _validate(path, overrides, os.environ if environ is None else environ, validators)
    validated.raise_errors(validated.errors)
    return validated.problems(validated.unresolved)


def digest(config: Config) -> str:
    """Twelve characters that are equal for equal configs, wherever their values came from; secrets have no part."""
    import msgspec

    # A model object that a Python program passes in counts by its class.
    plain = config.model_dump(mode="json", by_alias=True, warnings=False, fallback=lambda each: type(each).__qualname__)
    return sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class _Validated:
    raw: RawConfig
    lookup: SchemaLookup
    config: Config | None
    errors: Sequence[Diagnostic]
    unresolved: Sequence[Diagnostic]

    def problems(self, diagnostics: Sequence[Diagnostic]) -> list[Problem]:
        """The diagnostics as they are shown, in the order of the file."""
        hidden = self.raw.secrets(())
        # An alias repeats the values of its anchor, and their errors, at one location.
        found: dict[tuple[SourceLocation, str], Diagnostic] = {}
        for diagnostic in diagnostics:
            found.setdefault((diagnostic.location, diagnostic.message), diagnostic)
        return [diagnostic.problem(hidden) for diagnostic in sorted(found.values(), key=_order)]

    def raise_errors(self, errors: Sequence[Diagnostic]) -> None:
        """Raise a ConfigError with the errors, if there are any."""
        if errors:
            # From None, because pydantic's own error quotes its input, secrets and all.
            raise ConfigError(self.problems(errors)) from None


def _validate(
    path: Path, overrides: Sequence[str], environ: Mapping[str, str], validators: Sequence[Validator]
) -> _Validated:
    lookup = SchemaLookup(validation_schema(), (engine_schema(),))
    raw, errors = read(path)
    references = resolve(raw, environ, path.parent)
    raw, override_errors = merge(references.raw, environ, overrides, lookup)
    raw = raw.mark_secrets()
    errors += [*references.errors, *override_errors]
    schema_errors = list(check(raw, lookup))
    valid = raw.without(error.path for error in schema_errors)
    errors += [*schema_errors, *(error for validator in (*VALIDATORS, *validators) for error in validator(valid))]
    config: Config | None = None
    try:
        config = Config.model_validate(raw.data)
    except ValidationError as error:
        # The schema is generated from the same classes: their own checks find nothing new in what it refused.
        is_checked = bool(errors or references.unresolved)
        details = error.errors(include_url=False)
        errors += [_our_error(raw, dict(detail)) for detail in details if detail["type"] in _OURS]
        if not is_checked:
            errors += [_built_in_error(raw, dict(detail)) for detail in details if detail["type"] not in _OURS]
    return _Validated(raw, lookup, config, errors, references.unresolved)


def _our_error(raw: RawConfig, detail: dict[str, Any]) -> Diagnostic:  # Any: pydantic's own
    path = _path(raw, detail["loc"])
    message = str(detail["ctx"]["error"])
    for secret in sorted(raw.secrets(path), key=len, reverse=True):
        message = message.replace(secret, "***")
    return raw.diagnostic(path, message)


def _built_in_error(raw: RawConfig, detail: dict[str, Any]) -> Diagnostic:  # Any: pydantic's own
    path = _path(raw, detail["loc"])
    must = str(detail["msg"]).removeprefix("Input should ")
    return raw.diagnostic(path, f"is {raw.quote(path)}; must {must}")


def _path(raw: RawConfig, location: tuple[int | str, ...]) -> DataPath:
    """The path in the data: pydantic's has steps of its own, for model classes and for members of unions."""
    value = raw.data
    path: DataPath = ()
    for part in location:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        path = (*path, part)
    return path


def _with_lock(config: Config, path: Path) -> Config:
    """The config with the lock file beside it, unless it names another."""
    if config.storage.lock_file is not None:
        return config
    storage = config.storage.model_copy(update={"lock_file": path.with_name(LOCK_FILE_NAME)})
    return config.model_copy(update={"storage": storage})


def _order(diagnostic: Diagnostic) -> tuple[bool, int, int]:
    location = diagnostic.location
    return location.line is None, location.line or 0, location.column or 0


def _secrets(raw: RawConfig, lookup: SchemaLookup) -> Iterator[tuple[DataPath, frozenset[str]]]:
    """The secret texts of each path. A word of a choice, such as a log level, is none, and would blot out logs."""
    for path, texts in raw.texts.items():
        is_choice = any("enum" in schema for schema in lookup.at(raw.data, path))
        if texts and isinstance(raw.get(path), str) and not is_choice:
            yield path, texts


def _by_name(raw: RawConfig, path: DataPath) -> DataPath:
    """The path with a model's name in the place of its index, which may change."""
    match path:
        case ("models", int(index), *rest):
            return ("models", str(raw.get(("models", index, "name"))), *rest)
    return path
