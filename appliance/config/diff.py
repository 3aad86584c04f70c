"""Compares two configs key by key, and says how a running server applies each difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from appliance.config.base import BaseConfig, Change
from appliance.config.loader import LoadedConfig
from appliance.config.models import MODEL_CONFIGS, ModelConfig
from appliance.config.root import Config
from appliance.config.source_location import DataPath, dotted
from appliance.config.storage import LOCK_FILE_NAME

_SECRET = "***"  # noqa: S105 - stands for one


class _Absent:
    """Stands for a value that one of the two configs lacks."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """A key with different values in two configs; the values are JSON, with ``***`` for secrets, or ABSENT."""

    path: str
    """Dotted, with models by their names, as ``--set`` writes it."""

    old: Any  # Any: JSON values
    new: Any
    change: Change
    model: str | None = None
    """Name of the model it belongs to."""


def differences(old: LoadedConfig, new: LoadedConfig) -> list[Difference]:
    """Every key in which two configs differ, in the order of the schema; free keys, comments and order do not count."""
    comparison = _Comparison(old.hidden | new.hidden)
    found = comparison.compare(_without_default_lock(old), _without_default_lock(new), (), Change.RESTART)
    shared = _models_with_shared_engines(old.config) | _models_with_shared_engines(new.config)
    return [
        replace(difference, change=Change.RESTART)
        if difference.change is Change.SWAP and difference.model in shared
        else difference
        for difference in found
    ]


def _models_with_shared_engines(config: Config) -> set[str]:
    """The names of models whose engine several workers share; it accepts each of them once, so it is not replaced."""
    is_alone = config.server.workers in (1, "auto")
    return set() if is_alone else {model.name for model in config.models if model.backend == "vllm"}


def change_of(field: FieldInfo, above: Change) -> Change:
    """The change that a field declares, or the one declared above it."""
    return next((each for each in field.metadata if isinstance(each, Change)), above)


def keys_of(change: Change, model_config: type[BaseConfig] = Config, path: str = "") -> Iterator[str]:
    """The topmost keys that declare this change."""
    for name, field in model_config.model_fields.items():
        key = f"{path}{field.alias or name}"
        if change in field.metadata:
            yield key
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseConfig):
            yield from keys_of(change, field.annotation, f"{key}.")
        elif model_config is Config and name == "models":
            found = (each for model in MODEL_CONFIGS.values() for each in keys_of(change, model, "models.NAME."))
            yield from dict.fromkeys(found)


def _without_default_lock(loaded: LoadedConfig) -> BaseConfig:
    """The config without the default lock file, whose path follows from that of the config."""
    storage = loaded.config.storage
    if loaded.path is None or storage.lock_file != loaded.path.with_name(LOCK_FILE_NAME):
        return loaded.config
    return loaded.config.model_copy(update={"storage": storage.model_copy(update={"lock_file": None})})


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Compares two configs; `hidden` are the paths of values that are not shown."""

    hidden: frozenset[DataPath]

    def compare(self, old: object, new: object, path: DataPath, change: Change) -> Iterator[Difference]:
        """The differences at `path` and below it."""
        if old == new:
            return
        if isinstance(old, BaseConfig) and type(old) is type(new):
            for name, field in type(old).model_fields.items():
                below = (*path, field.alias or name)
                yield from self.compare(getattr(old, name), getattr(new, name), below, change_of(field, change))
            return
        olds, news = _parts(old), _parts(new)
        if olds is None or news is None:
            yield Difference(
                _dotted_by_name(path), self._shown(old, path), self._shown(new, path), change, _model(path)
            )
            return
        for part in dict.fromkeys((*olds, *news)):
            yield from self.compare(olds.get(part, ABSENT), news.get(part, ABSENT), (*path, part), change)

    def _shown(self, value: Any, path: DataPath) -> Any:  # Any: JSON values
        if isinstance(value, SecretStr) or path in self.hidden:
            return value if value is ABSENT or value is None else _SECRET
        if isinstance(value, BaseConfig):
            fields = type(value).model_fields.items()
            given = {field.alias or name: getattr(value, name) for name, field in fields if _is_set(value, name, field)}
            return {key: self._shown(item, (*path, key)) for key, item in given.items()}
        if isinstance(value, Mapping):
            return {key: self._shown(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [self._shown(item, (*path, index)) for index, item in enumerate(value)]
        return str(value) if isinstance(value, Path) else value


def _dotted_by_name(path: DataPath) -> str:
    """The path as ``--set`` writes it: ``models.smollm2.engine.max_model_len``."""
    match path:
        case ("models", str(name), *rest):
            below = dotted(tuple(rest))
            return f"models.{name}" + (f".{below}" if below and not below.startswith("[") else below)
    return dotted(path)


def _model(path: DataPath) -> str | None:
    return str(path[1]) if len(path) > 1 and path[0] == "models" else None


def _is_set(model_config: BaseConfig, name: str, field: FieldInfo) -> bool:
    return field.is_required() or getattr(model_config, name) != field.get_default(call_default_factory=True)


def _parts(value: object) -> Mapping[str | int, object] | None:
    """The parts that are compared one by one: entries of a mapping or of a list of configs, models by name.

    None for a single value, such as another list.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, tuple | list) or not all(isinstance(each, BaseConfig) for each in value):
        return None
    return {item.name if isinstance(item, ModelConfig) else index: item for index, item in enumerate(value)}
