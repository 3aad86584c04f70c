"""From a file to the config: read, resolve references, merge the environment and `--set`, validate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from appliance.config.interpolation import resolve
from appliance.config.json_schema import schemas_at
from appliance.config.masking import MASK
from appliance.config.raw_config import DataPath, Diagnostic, RawConfig, Source
from appliance.config.root import Config
from appliance.config.schema_errors import check, with_guessed_classes
from appliance.config.sources import merge
from appliance.config.storage import LOCK_FILE_NAME
from appliance.config.validators import VALIDATORS, Validator
from appliance.config.yaml_parser import STANDARD_INPUT, parse, read
from appliance.core.errors import ConfigError, Problem


def _without_file() -> NoReturn:
    raise AssertionError("this config has no file; this is a bug")


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
    """The config's own file; None where it was piped in, or a program made it."""

    raw: RawConfig | None = field(default=None, repr=False, compare=False)
    """The file as it was read, for errors that are found later."""

    reload: Callable[[], LoadedConfig] = field(default=_without_file, repr=False, compare=False)
    """Load the config that the file has now, as this one was loaded; raises a ConfigError if something is wrong."""

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the config's own file, as `sha256sum` prints it."""
        return None if self.path is None else self.files.get(self.path)

    def problem(self, path: DataPath, message: str) -> Problem:
        """An error of the value at `path`, with its location in the file."""
        raw = self.raw or _without_file()
        return raw.diagnostic(path, message).problem(raw.secrets(()))


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
    raw, config, errors = _validate(read(path), path.parent, overrides, environ, validators)
    if errors or config is None:
        # From None, because pydantic's own error quotes its input, secrets and all.
        raise ConfigError(_problems(raw, errors)) from None
    secret = dict(_secrets(raw))
    loaded = LoadedConfig(
        config,
        frozenset[str]().union(*secret.values()),
        frozenset(_by_name(raw, secret_path) for secret_path in secret),
        raw.files,
        raw=raw,
    )
    if path == STANDARD_INPUT:
        return loaded
    return replace(loaded, path=path, reload=partial(load, path, overrides, validators=validators))


def errors_in(text: str, validators: Sequence[Validator] = ()) -> Sequence[Diagnostic]:
    """Every error of a config that is not in a file yet, but for references, which are left unresolved."""
    raw = parse(text, Source.of_file("config", text))
    _, _, errors = _validate(raw, Path(), (), {}, validators)
    return [error for error in errors if not error.is_unresolved]


def digest(config: Config) -> str:
    """Twelve characters that are equal for equal configs, wherever their values came from; secrets have no part."""
    import msgspec

    # A model object that a Python program passes in counts by its class.
    plain = config.model_dump(mode="json", by_alias=True, warnings=False, fallback=lambda each: type(each).__qualname__)
    return sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:12]


def _validate(
    raw: RawConfig,
    directory: Path,
    overrides: Sequence[str],
    environ: Mapping[str, str] | None,
    validators: Sequence[Validator],
) -> tuple[RawConfig, Config | None, Sequence[Diagnostic]]:
    """The config of a file in `directory`, None where it cannot be built, and every error."""
    environ = os.environ if environ is None else environ
    raw = merge(resolve(raw, environ, directory), environ, overrides).mark_secrets()
    # A misspelt class hides none of the other errors of its model.
    guess = with_guessed_classes(raw)
    schema_errors = list(check(guess))
    valid = guess.without(error.path for error in schema_errors)
    if guess is not raw:
        known = {error.path for error in schema_errors}
        schema_errors += [error for error in check(raw) if error.path not in known]
    errors = [*raw.errors, *schema_errors, *(error for each in (*VALIDATORS, *validators) for error in each(valid))]
    try:
        config = Config.model_validate(raw.data)
        return raw, config if config.storage.lock_file else _with_lock_file(config, directory), errors
    except ValidationError as error:
        return raw, None, [*errors, *_pydantic_errors(raw, error, has_others=bool(errors))]


def _with_lock_file(config: Config, directory: Path) -> Config:
    """The config with the lock file beside its file, whose path the config itself does not know, as a default."""
    storage = config.storage.model_copy(update={"lock_file": directory / LOCK_FILE_NAME})
    copy = config.model_copy(update={"storage": storage})
    # A copy takes what is updated for set, and listings show what is set.
    storage.model_fields_set.discard("lock_file")
    if "storage" not in config.model_fields_set:
        copy.model_fields_set.discard("storage")
    return copy


def _pydantic_errors(raw: RawConfig, error: ValidationError, *, has_others: bool) -> Iterator[Diagnostic]:
    """The errors of our own checks; and those of pydantic where there are no others, which the schema repeats."""
    details = error.errors(include_url=False)
    # A list without its wrong entries may be too short, too.
    has_others = has_others or any(detail["type"] == "value_error" for detail in details)
    for detail in details:
        path = _path(raw, detail["loc"])
        if detail["type"] == "value_error":
            message = str(detail["ctx"]["error"])
            for secret in sorted(raw.secrets(path), key=len, reverse=True):
                message = message.replace(secret, MASK)
            yield raw.diagnostic(path, message)
        elif not has_others:
            # "Input should be ...", "Tuple should have ..."
            _, _, form = detail["msg"].rpartition(" should ")
            yield raw.diagnostic(path, f"is {raw.quote(path)}; must {form}")


def _problems(raw: RawConfig, errors: Sequence[Diagnostic]) -> list[Problem]:
    """The errors as they are shown, in the order of the file."""
    # An alias repeats the values of its anchor, and their errors, at one location.
    distinct: dict[object, Diagnostic] = {}
    for error in errors:
        distinct.setdefault((error.location, error.message), error)
    hidden = raw.secrets(())
    return [error.problem(hidden) for error in sorted(distinct.values(), key=_order)]


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


def _order(diagnostic: Diagnostic) -> tuple[bool, int, int]:
    location = diagnostic.location
    return not location.line, location.line, location.column


def _secrets(raw: RawConfig) -> Iterator[tuple[DataPath, frozenset[str]]]:
    """The secret texts of each path. A word of a choice, such as a log level, is none, and would blot out logs."""
    for path, texts in raw.texts.items():
        is_choice = any("enum" in schema for schema in schemas_at(raw.data, path))
        if texts and isinstance(raw.get(path), str) and not is_choice:
            yield path, texts


def _by_name(raw: RawConfig, path: DataPath) -> DataPath:
    """The path with a model's name in the place of its index, which may change."""
    match path:
        case ("models", int(index), *rest):
            return ("models", str(raw.get(("models", index, "name"))), *rest)
    return path
