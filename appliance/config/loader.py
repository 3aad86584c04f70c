"""The walk from a file to the config: read, resolve, lay over, check, construct."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.cli_overrides import lay as lay_overrides
from appliance.config.construct import construct
from appliance.config.env_overrides import lay as lay_environment
from appliance.config.interpolation import resolve
from appliance.config.json_schema import engine_schema, schema_of
from appliance.config.raw_config import RawConfig
from appliance.config.root import Config
from appliance.config.schema_errors import check
from appliance.config.schema_lookup import SchemaLookup, typed
from appliance.config.source_location import DataPath, Diagnostic
from appliance.config.validators import RULES
from appliance.config.yaml_parser import read
from appliance.core.errors import ConfigError, Problem
from appliance.storage import lockfile


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config that is right, and what must not be shown of it."""

    config: Config
    secrets: frozenset[str] = frozenset()
    """Texts that came out of references and the environment; logs and listings show ``***`` instead."""

    hidden: frozenset[DataPath] = frozenset()
    """The paths of values with such a text in them, models by their names."""

    files: Mapping[Path, str] = field(default_factory=dict)
    """Every file that was read, with the SHA-256 of what it held."""

    path: Path | None = None
    """The config's own file; None where a program made the config."""

    overrides: tuple[str, ...] = ()
    """What was laid over it."""

    draft: RawConfig | None = field(default=None, repr=False, compare=False)
    """The file as it was read, for faults that only show later."""

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the config's own file, as `sha256sum` prints it."""
        return None if self.path is None else self.files.get(self.path)

    def again(self) -> LoadedConfig:
        """What the same walk makes of the file as it is now.

        Raises:
            ConfigError: something is wrong.
        """
        if self.path is None:
            raise AssertionError("this config is of no file; this is a bug")
        return load(self.path, self.overrides)

    def problem(self, path: DataPath, message: str) -> Problem:
        """A fault of the value at `path`, with its place in the file."""
        if self.draft is None:
            raise AssertionError("this config is of no file; this is a bug")
        return self.draft.fault(path, message).problem(self.draft.secrets(()))


def load(path: Path, overrides: Sequence[str] = (), *, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """Read and check the config at `path`, with the environment and then the `overrides` laid over it.

    An override reads ``server.port=9000``. `environ` is the environment; None means the one of this process.

    Raises:
        ConfigError: something is wrong; it carries every problem found.
    """
    environ = os.environ if environ is None else environ
    shape = SchemaLookup(schema_of(), (engine_schema(),))
    draft, unread = read(path)
    draft, unresolved = resolve(draft, environ, path.parent)
    draft, unknown = lay_environment(typed(draft, shape), environ, shape)
    draft, malformed = lay_overrides(draft, overrides)
    draft = draft.concealed()
    against_rules = [fault for rule in RULES for fault in rule(draft)]
    config, wrong = construct(draft)
    faults = _distinct([*unread, *unresolved, *unknown, *malformed, *against_rules, *check(draft, shape)])
    faults += _new(wrong, faults)
    if faults or config is None:
        # From None, because pydantic's own error quotes its input, secrets and all.
        hidden = draft.secrets(())
        raise ConfigError([fault.problem(hidden) for fault in sorted(faults, key=_order)]) from None
    secret = dict(_secrets(draft, shape))
    return LoadedConfig(
        _with_lock(config, path),
        frozenset[str]().union(*secret.values()),
        frozenset(_by_name(draft, place) for place in secret),
        draft.files,
        path,
        tuple(overrides),
        draft,
    )


def _with_lock(config: Config, path: Path) -> Config:
    """The config with the lock beside it, where it names no other."""
    if config.storage.lock_file is not None:
        return config
    storage = config.storage.model_copy(update={"lock_file": path.with_name(lockfile.NAME)})
    return config.model_copy(update={"storage": storage})


def _distinct(faults: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The first fault of each path, and of what an alias repeats from its anchor."""
    kept: dict[object, Diagnostic] = {}
    for fault in faults:
        twin = (fault.place, fault.message)
        if twin not in kept and (not fault.path or fault.path not in kept):
            kept |= {twin: fault, fault.path: fault} if fault.path else {twin: fault}
    return list(dict.fromkeys(kept.values()))


def _new(faults: Iterable[Diagnostic], known: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    """
    The faults that no known one is above, at or below, or at the same anchor; pydantic says again what the schema said.
    """
    paths = {fault.path for fault in known if fault.path}
    parents = {path[:depth] for path in paths for depth in range(1, len(path))}
    places = {fault.place for fault in known if fault.place.line is not None}
    for fault in faults:
        is_below = any(fault.path[:depth] in paths for depth in range(1, len(fault.path) + 1))
        if not is_below and fault.path not in parents and fault.place not in places:
            yield fault


def _order(fault: Diagnostic) -> tuple[bool, int, int]:
    return fault.place.line is None, fault.place.line or 0, fault.place.column or 0


def _secrets(draft: RawConfig, shape: SchemaLookup) -> Iterator[tuple[DataPath, frozenset[str]]]:
    """
    The texts from outside that are still text; a choice such as a log level is no secret, and would blot out logs.
    """
    for path, texts in draft.texts.items():
        is_choice = any("enum" in schema for schema in shape.at(draft.data, path))
        if texts and isinstance(draft.get(path), str) and not is_choice:
            yield path, texts


def _by_name(draft: RawConfig, path: DataPath) -> DataPath:
    """The path with the model's name in the place of its number, which says less and may change."""
    match path:
        case ("models", int(index), *rest):
            return ("models", str(draft.get(("models", index, "name"))), *rest)
    return path
