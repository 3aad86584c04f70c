"""The command `config`: the config that a server would use, with the source of every value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from appliance.cli.options import file_argument, load_config, overrides
from appliance.config import LoadedConfig
from appliance.config.raw_config import DataPath, RawConfig
from appliance.ui.redacted_config import RedactedConfig

# Where the comments begin, unless a value is longer.
_COMMENT_COLUMN = 50


@click.command()
@file_argument
@click.option("--no-defaults", is_flag=True, help="Leave out the values that nothing sets.")
@overrides
def config(file: Path | None, no_defaults: bool, overrides: Sequence[str]) -> None:
    """Print the config that a server of FILE would use.

    Each value that is not a default has its source beside it: a line of the file, a variable of the environment, or a
    --set. Secrets are shown as ***.
    """
    loaded = load_config(file, overrides)
    redacted = RedactedConfig(loaded.config, loaded.secrets)
    click.echo(as_yaml(redacted.as_data(has_defaults=not no_defaults), loaded), nl=False)


def as_yaml(data: Any, loaded: LoadedConfig) -> str:  # Any: JSON values
    """The config `data` as YAML, with the source of each value in a comment."""
    if loaded.raw is None:
        raise AssertionError("the config of a command has a file; this is a bug")
    yaml, text = YAML(), StringIO()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_with_sources(data, (), loaded.raw), text)
    return text.getvalue()


def _with_sources(value: Any, path: DataPath, raw: RawConfig) -> Any:  # Any: JSON values
    """The value, with a comment beside each scalar that the file, the environment or an option sets."""
    if not isinstance(value, dict | list):
        return value
    entries: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    below = {key: _with_sources(item, (*path, key), raw) for key, item in entries}
    made = CommentedMap(below) if isinstance(value, dict) else CommentedSeq(below.values())
    for key, item in below.items():
        is_scalar = not isinstance(item, dict | list) or not item
        if is_scalar and raw.find((*path, key)) is not None:
            made.yaml_add_eol_comment(_source(raw, (*path, key)), key=key, column=_COMMENT_COLUMN)
    return made


def _source(raw: RawConfig, path: DataPath) -> str:
    problem = raw.diagnostic(path, "").problem(raw.secrets(()))
    # What follows the `=` of an option is the value itself.
    return f"{problem.source}:{problem.line}" if problem.line else problem.source.partition("=")[0]
