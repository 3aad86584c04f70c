"""Arguments and options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

FILE = click.Path(path_type=Path)
"""
The type of an argument that is a config.
"""

overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Set one value over the file and the environment, such as server.port=9000 or "
    "models.NAME.engine.max_model_len=4096. May be given several times.",
)
offline = click.option(
    "--offline", is_flag=True, help="Use only what is in the cache, and make no connection to any store."
)
frozen = click.option(
    "--frozen", is_flag=True, help="Refuse bytes that appliance.lock, beside FILE, does not name as they are."
)


def to_overrides(overrides: Sequence[str], offline: bool, frozen: bool = False) -> Sequence[str]:
    """The overrides, with those that have a flag of their own."""
    flags = {"storage.offline=true": offline, "storage.frozen=true": frozen}
    return [*overrides, *(override for override, is_set in flags.items() if is_set)]
