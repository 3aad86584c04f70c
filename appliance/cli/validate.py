"""The commands `validate` and `schema`: whether a file is right, and what it may hold."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from appliance.cli.options import (
    FILE,
    Choice,
    default_file,
    format_option,
    load_config,
    load_quietly,
    overrides,
    write_files,
)
from appliance.config import LoadedConfig, schema_of
from appliance.config.json_schema import directory
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import printable
from appliance.core.errors import ApplianceError, ConfigError, Problem

_CONFIG = re.compile(rb"^models\s*:|^#.*\$schema=\S*appliance\.schema\.json", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Finding:
    """What was found in one file."""

    file: Path
    problems: Sequence[Problem] = ()
    unread: Sequence[Problem] = ()
    """Storages that could not be read, so that the layouts of their models are unchecked."""

    unresolved: Sequence[Problem] = ()
    """References whose values are unchecked, with `--without-secrets`."""

    warnings: Sequence[Problem] = ()
    """What models lack that they can be served without."""

    storage_exit_code: int = 0
    """That of the first storage that could not be read."""

    def as_text(self) -> str:
        """Every problem with its location, or that there is none."""
        lines = [str(problem) for problem in (*self.problems, *self.unread)] or [f"{self.file}: good"]
        lines += [f"warning: {warning}" for warning in self.warnings]
        for each in self.unresolved:
            reason = each.message.partition(";")[0]
            lines.append(f"{each.source}:{each.line}:{each.column}: {each.path}: not checked: {reason}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:  # Any: JSON values
        """The same for programs."""
        lists = {"problems": self.problems, "unread": self.unread, "unresolved": self.unresolved}
        lists |= {"warnings": self.warnings} if self.warnings else {}
        keys = ("source", "line", "column", "path", "message")
        rows = {name: [{key: getattr(each, key) for key in keys} for each in found] for name, found in lists.items()}
        return {"file": str(self.file), "valid": not self.problems, **rows}


@click.command()
@click.argument("files", type=FILE, nargs=-1, metavar="[FILE | DIRECTORY]...")
@click.option(
    "--deep",
    is_flag=True,
    help="Read the models' headers too, and check that their layouts work and no file is missing.",
)
@click.option(
    "--without-secrets",
    is_flag=True,
    help="Take references to unset variables and missing files for valid, and name them.",
)
@format_option("How to print problems.")
@overrides
def validate(files: Sequence[Path], deep: bool, without_secrets: bool, format_: str, overrides: Sequence[str]) -> None:
    """Check files, and print every problem with its line.

    Nothing is read but the files, and nobody is asked. Of a DIRECTORY every YAML file is checked that is a config, also
    in the directories below it. - is standard input.

    Exit code 0 when all are good, 2 when one is not. With --deep, a storage that cannot be read is named too, and the
    exit code is that of its error where nothing else is wrong.
    """
    if deep and without_secrets:
        raise click.UsageError("--deep reads storages, which may need the secrets; leave out --without-secrets")
    configs = [
        config for file in files or [default_file()] for config in (_configs_in(file) if file.is_dir() else [file])
    ]
    found = [_check(file, overrides, deep=deep, without_secrets=without_secrets) for file in configs]
    if format_ == "json":
        click.echo(json.dumps([finding.as_json() for finding in found], indent=2))
    else:
        click.echo(printable("\n".join(finding.as_text() for finding in found), kept="\t\n"))
        if count := sum(len(finding.problems) for finding in found):
            click.echo(f"{count} problem{'s' if count > 1 else ''} found", err=True)
    if any(finding.problems for finding in found):
        sys.exit(ConfigError.exit_code)
    sys.exit(next((finding.storage_exit_code for finding in found if finding.storage_exit_code), 0))


def _configs_in(directory: Path) -> Sequence[Path]:
    """The YAML files in a directory and below it that are configs, as their key `models` or their modeline says.

    Raises:
        ConfigError: there is none.
    """
    # Unlike rglob, it goes on where a directory vanishes or may not be read.
    files = (Path(root, name) for root, _, names in os.walk(directory) for name in names)
    found = [file for file in sorted(files) if file.suffix in (".yaml", ".yml") and _is_config(file)]
    if not found:
        fault = "has no config; must have a YAML file with the key models at its top"
        raise ConfigError([Problem(str(directory), None, None, "", fault)])
    return found


def _is_config(file: Path) -> bool:
    try:
        return file.is_file() and _CONFIG.search(file.read_bytes()) is not None
    except FileNotFoundError:
        return False
    except OSError:
        # The check says why it cannot be read.
        return True


def _check(file: Path, overrides: Sequence[str], *, deep: bool, without_secrets: bool) -> _Finding:
    try:
        loaded = (load_quietly if deep else load_config)(file, overrides)
    except ConfigError as error:
        unresolved = [problem for problem in error.problems if problem.is_unresolved and without_secrets]
        return _Finding(file, [each for each in error.problems if each not in unresolved], unresolved=unresolved)
    return _check_layouts(file, loaded) if deep else _Finding(file)


def _check_layouts(file: Path, loaded: LoadedConfig) -> _Finding:
    """Check the layouts against the config.json of each model in its storage, and that its files are complete."""
    from appliance.planner.completeness import check_files
    from appliance.planner.planner import check

    problems: list[Problem] = []
    unread: list[Problem] = []
    warnings: list[Problem] = []
    codes: list[int] = []
    settings = loaded.config.storage
    for index, config in enumerate(loaded.config.models):
        uri = ("models", index, "storage", "uri")
        try:
            violations = check(config, settings)
            problems += [loaded.problem(("models", index, *each.path), each.message) for each in violations]
            gaps = check_files(config, config.storages.get("model"), settings)
            warnings += [loaded.problem(uri, gap) for gap in gaps]
        except ApplianceError as error:
            unread.append(loaded.problem(uri, f"cannot be read; {error}"))
            codes.append(error.exit_code)
    return _Finding(file, problems, unread, warnings=warnings, storage_exit_code=next(iter(codes), 0))


@click.command()
@click.argument("class_", metavar="[CLASS]", type=Choice(sorted(MODEL_CONFIGS)), required=False)
@click.option(
    "--write",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write all schemas into DIR instead, for editors.",
)
def schema(class_: str | None, folder: Path | None) -> None:
    """Print the JSON Schema of the file, or of a model CLASS.

    With --write, an editor with the YAML language server checks and completes a file that begins with the line:

    # yaml-language-server: $schema=DIR/appliance.schema.json
    """
    if folder is None:
        click.echo(json.dumps(schema_of(class_), indent=2))
    elif class_ is not None:
        raise click.UsageError("--write writes the schemas of all classes; leave out CLASS")
    else:
        # All of them, because that of the file refers to that of vLLM's arguments.
        texts = {folder / each.name: each.read_text(encoding="utf-8") for each in sorted(directory().glob("*.json"))}
        write_files(texts, force=True, option="--write")
