"""Two configs compared key by key: what differs, and what that asks of a server that runs."""

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
    """Stands where one of the two has nothing."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that two configs have different values of; the values are JSON, with ``***`` for secrets, or ABSENT."""

    path: str
    """Dotted, and models by their names, as ``--set`` writes it."""

    old: Any  # Any: JSON values
    new: Any
    change: Change
    model: str | None = None
    """Name of the model it belongs to."""


def differences(old: LoadedConfig, new: LoadedConfig) -> list[Difference]:
    """Every key in which two configs differ, in the order of the schema; free keys, comments and order are none."""
    found = _Differ(old.hidden | new.hidden).of(_as_written(old), _as_written(new), (), Change.RESTART)
    shared = _shared(old.config) | _shared(new.config)
    return [replace(each, change=Change.RESTART) if _would_swap(each, shared) else each for each in found]


def _shared(config: Config) -> set[str]:
    """
    The names of models whose engine several workers share: it takes each of them in once, and so is never brought anew.
    """
    is_one = config.server.workers in (1, "auto")
    return set() if is_one else {model_config.name for model_config in config.models if model_config.backend == "vllm"}


def _would_swap(difference: Difference, shared: set[str]) -> bool:
    return difference.change is Change.SWAP and difference.model in shared


def change_of(field: FieldInfo, above: Change) -> Change:
    """What a field says of itself, or what is said `above` it."""
    return next((each for each in field.metadata if isinstance(each, Change)), above)


def keys_of(change: Change, model_config: type[BaseConfig] = Config, path: str = "") -> Iterator[str]:
    """The topmost keys that are said to change so."""
    for name, field in model_config.model_fields.items():
        key = f"{path}{field.alias or name}"
        if change in field.metadata:
            yield key
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseConfig):
            yield from keys_of(change, field.annotation, f"{key}.")
        elif model_config is Config and name == "models":
            found = (each for model in MODEL_CONFIGS.values() for each in keys_of(change, model, "models.NAME."))
            yield from dict.fromkeys(found)


def _as_written(loaded: LoadedConfig) -> BaseConfig:
    """The config without the lock beside it, which follows the file wherever it lies."""
    storage = loaded.config.storage
    if loaded.path is None or storage.lock_file != loaded.path.with_name(LOCK_FILE_NAME):
        return loaded.config
    return loaded.config.model_copy(update={"storage": storage.model_copy(update={"lock_file": None})})


@dataclass(frozen=True, slots=True)
class _Differ:
    """One walk down both configs; `hidden` are the paths of values that are not shown."""

    hidden: frozenset[DataPath]

    def of(self, old: object, new: object, path: DataPath, change: Change) -> Iterator[Difference]:
        """What differs at `path` and below it."""
        if old == new:
            return
        if isinstance(old, BaseConfig) and type(old) is type(new):
            for name, field in type(old).model_fields.items():
                below = (*path, field.alias or name)
                yield from self.of(getattr(old, name), getattr(new, name), below, change_of(field, change))
            return
        olds, news = _parts(old), _parts(new)
        if olds is None or news is None:
            yield Difference(written(path), self._shown(old, path), self._shown(new, path), change, _model(path))
            return
        for part in dict.fromkeys((*olds, *news)):
            yield from self.of(olds.get(part, ABSENT), news.get(part, ABSENT), (*path, part), change)

    def _shown(self, value: Any, path: DataPath) -> Any:  # Any: JSON values
        if isinstance(value, SecretStr) or path in self.hidden:
            return value if value is ABSENT or value is None else _SECRET
        if isinstance(value, BaseConfig):
            fields = type(value).model_fields.items()
            said = {field.alias or name: getattr(value, name) for name, field in fields if _is_said(value, name, field)}
            return {key: self._shown(each, (*path, key)) for key, each in said.items()}
        if isinstance(value, Mapping):
            return {key: self._shown(each, (*path, key)) for key, each in value.items()}
        if isinstance(value, tuple | list):
            return [self._shown(each, (*path, index)) for index, each in enumerate(value)]
        return str(value) if isinstance(value, Path) else value


def written(path: DataPath) -> str:
    """The path as ``--set`` writes it: ``models.smollm2.engine.max_model_len``."""
    match path:
        case ("models", str(name), *rest):
            below = dotted(tuple(rest))
            return f"models.{name}" + (f".{below}" if below and not below.startswith("[") else below)
    return dotted(path)


def _model(path: DataPath) -> str | None:
    return str(path[1]) if len(path) > 1 and path[0] == "models" else None


def _is_said(model_config: BaseConfig, name: str, field: FieldInfo) -> bool:
    return field.is_required() or getattr(model_config, name) != field.get_default(call_default_factory=True)


def _parts(value: object) -> Mapping[str | int, object] | None:
    """What is compared one by one: entries of a mapping, and the sections of a list, models by name.

    A list of anything else is one value.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, tuple | list) or not all(isinstance(each, BaseConfig) for each in value):
        return None
    return {each.name if isinstance(each, ModelConfig) else index: each for index, each in enumerate(value)}
