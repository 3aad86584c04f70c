"""What `appliance validate` finds in a file, and with `--deep` in the storages that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.cli.options import load_config
from appliance.config import LoadedConfig
from appliance.config.engine import EngineConfig
from appliance.config.models import LocalModelConfig
from appliance.core import logging_setup
from appliance.core.errors import ApplianceError, ConfigError, Problem
from appliance.planner import check


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in one file."""

    file: Path
    problems: Sequence[Problem]
    unread: Sequence[Problem] = ()
    """Storages that did not say what their model is, so that nobody knows whether it can be served."""

    storage_exit_code: int = 0
    """Of the first of these storages; 0 where all were read."""

    @property
    def exit_code(self) -> int:
        """What is wrong with the file goes before what is wrong with its storages."""
        return ConfigError.exit_code if self.problems else self.storage_exit_code

    def as_text(self) -> str:
        """Every problem with its place, or that there is none."""
        return "\n".join(map(str, (*self.problems, *self.unread))) or f"{self.file}: good"

    def as_json(self) -> dict[str, Any]:  # Any: JSON values
        """The same for programs."""
        return {
            "file": str(self.file),
            "valid": not self.problems,
            "problems": list(map(_told, self.problems)),
            "unread": list(map(_told, self.unread)),
        }


def validate(file: Path, overrides: Sequence[str], *, deep: bool) -> Finding:
    """Check a file, and with `deep` its layouts against what the models in its storages say of themselves."""
    try:
        loaded = load_config(file, overrides)
    except ConfigError as error:
        return Finding(file, error.problems)
    return _look(file, loaded) if deep else Finding(file, ())


def _look(file: Path, loaded: LoadedConfig) -> Finding:
    logging_setup.configure("auto", "warning", loaded.secrets)
    problems: list[Problem] = []
    unread: list[Problem] = []
    codes: list[int] = []
    for index, config in enumerate(loaded.config.models):
        if not isinstance(config, LocalModelConfig) or config.storage is None:
            continue
        if not isinstance(config.engine, EngineConfig):
            continue
        try:
            refused = check(config.storage, config.layout, config.engine, loaded.config.storage)
        except ApplianceError as error:
            unread.append(loaded.problem(("models", index, "storage", "uri"), f"cannot be looked into; {error}"))
            codes.append(error.exit_code)
        else:
            problems += [loaded.problem(("models", index, *each.path), each.message) for each in refused]
    return Finding(file, problems, unread, next(iter(codes), 0))


def _told(problem: Problem) -> dict[str, Any]:  # Any: JSON values
    return {key: getattr(problem, key) for key in ("source", "line", "column", "path", "message")}
