"""The command `validate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from appliance.cli.options import FILE, VALIDATORS, format_option, load_config, load_quietly, overrides
from appliance.config.loader import check_without_secrets
from appliance.config.source_location import printable
from appliance.core.errors import ApplianceError, ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in one file."""

    file: Path
    problems: Sequence[Problem] = ()
    unread: Sequence[Problem] = ()
    """Storages that could not be read, so that the layouts of their models are unchecked."""

    unresolved: Sequence[Problem] = ()
    """References whose values are unchecked, with `--without-secrets`."""

    storage_exit_code: int = 0
    """That of the first storage that could not be read."""

    @property
    def exit_code(self) -> int:
        """The exit code for this file; that of a problem goes before that of a storage."""
        return ConfigError.exit_code if self.problems else self.storage_exit_code

    def as_text(self) -> str:
        """Every problem with its location, or that there is none."""
        lines = [str(problem) for problem in (*self.problems, *self.unread)] or [f"{self.file}: good"]
        lines += [_unchecked(reference) for reference in self.unresolved]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:  # Any: JSON values
        """The same for programs."""
        lists = {"problems": self.problems, "unread": self.unread, "unresolved": self.unresolved}
        rows = {name: [_row(problem) for problem in problems] for name, problems in lists.items()}
        return {"file": str(self.file), "valid": not self.problems, **rows}


def _unchecked(reference: Problem) -> str:
    reason = reference.message.partition(";")[0]
    return f"{reference.source}:{reference.line}:{reference.column}: {reference.path}: not checked: {reason}"


def _row(problem: Problem) -> dict[str, Any]:  # Any: JSON values
    return {key: getattr(problem, key) for key in ("source", "line", "column", "path", "message")}


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--deep", is_flag=True, help="Read the models' config.json too, and check their layouts; no weights.")
@click.option(
    "--without-secrets",
    is_flag=True,
    help="Take references to unset variables and missing files for valid, and name them.",
)
@format_option("How to print problems.")
@overrides
def validate(files: Sequence[Path], deep: bool, without_secrets: bool, format_: str, overrides: Sequence[str]) -> None:
    """Check each FILE, offline and within a second, and print every problem with its line and column.

    Exit code 0 when all are good, 2 when one is not. With --deep, a storage that cannot be read is named too, and the
    exit code is that of its error where nothing else is wrong.
    """
    if deep and without_secrets:
        raise click.UsageError("--deep reads storages, which may need the secrets; leave out --without-secrets")
    check = _check_without_secrets if without_secrets else _check_deeply if deep else _check
    found = [check(file, overrides) for file in files]
    if format_ == "json":
        click.echo(json.dumps([finding.as_json() for finding in found], indent=2))
    else:
        text = "\n".join(finding.as_text() for finding in found)
        click.echo("\n".join(map(printable, text.split("\n"))))
    codes = [finding.exit_code for finding in found if finding.exit_code]
    sys.exit(ConfigError.exit_code if any(finding.problems for finding in found) else next(iter(codes), 0))


def _check(file: Path, overrides: Sequence[str]) -> Finding:
    try:
        load_config(file, overrides)
    except ConfigError as error:
        return Finding(file, error.problems)
    return Finding(file)


def _check_without_secrets(file: Path, overrides: Sequence[str]) -> Finding:
    try:
        return Finding(file, unresolved=check_without_secrets(file, overrides, validators=VALIDATORS))
    except ConfigError as error:
        return Finding(file, error.problems)


def _check_deeply(file: Path, overrides: Sequence[str]) -> Finding:
    """Check the layouts too, against the config.json of each model in its storage."""
    from appliance.config.engine import EngineConfig
    from appliance.config.models import LocalModelConfig
    from appliance.planner import check

    try:
        loaded = load_quietly(file, overrides)
    except ConfigError as error:
        return Finding(file, error.problems)
    problems: list[Problem] = []
    unread: list[Problem] = []
    codes: list[int] = []
    for index, config in enumerate(loaded.config.models):
        if not isinstance(config, LocalModelConfig) or config.storage is None:
            continue
        if not isinstance(config.engine, EngineConfig):
            continue
        try:
            violations = check(config.storage, config.layout, config.engine, loaded.config.storage)
        except ApplianceError as error:
            unread.append(loaded.problem(("models", index, "storage", "uri"), f"cannot be read; {error}"))
            codes.append(error.exit_code)
        else:
            problems += [loaded.problem(("models", index, *each.path), each.message) for each in violations]
    return Finding(file, problems, unread, storage_exit_code=next(iter(codes), 0))
