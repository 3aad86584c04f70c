"""The command `serve`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from appliance.cli.options import (
    default_file,
    file_argument,
    frozen,
    load_config,
    offline,
    overrides,
    to_overrides,
    unlimited_models,
)
from appliance.config import LoadedConfig
from appliance.config.models import ModelConfig
from appliance.core.errors import ApplianceError, ConfigError, Problem


@click.command()
@file_argument
@click.option("--host", help="Address to listen on, over server.host.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on, over server.port.")
@offline
@frozen
@overrides
def serve(
    file: Path | None, host: str | None, port: int | None, offline: bool, frozen: bool, overrides: Sequence[str]
) -> NoReturn:
    """Serve the models of FILE until SIGTERM.

    The port answers at once; /readyz says when the models do. On SIGTERM or Ctrl-C, running requests are finished; a
    second signal ends the server at once. On SIGHUP, FILE is read again and its changes are applied. Where there is an
    appliance.lock beside FILE, downloaded files must match it.
    """
    if sys.stderr.isatty():
        # What follows is imported for seconds.
        click.echo(f"reading {file or default_file()}", err=True)
    overrides = [*to_overrides(overrides, offline=offline, frozen=frozen), *listening_at(host, port)]
    loaded = load_config(file, overrides)
    from appliance.core.system import exit_now
    from appliance.models.factory import ModelFactory
    from appliance.server import serve as serve_config

    exit_now(serve_config(loaded, ModelFactory(_check_local_layouts(loaded))))


def listening_at(host: str | None, port: int | None) -> Sequence[str]:
    """The overrides of `--host` and `--port`."""
    values = {"server.host": host, "server.port": port}
    return [f"{path}={value}" for path, value in values.items() if value is not None]


def _check_local_layouts(loaded: LoadedConfig) -> Sequence[ModelConfig]:
    """Check the layouts of models whose files are on this machine, and return those that are not in the cache.

    The others are checked before their download. Models on one GPU must have limits of their memory.

    Raises:
        ConfigError: a layout cannot work.
    """
    from appliance.planner.hardware import detect_hardware
    from appliance.planner.planner import precheck_layout
    from appliance.storage.filesystems.registry import LocalFilesystem, filesystem_for

    settings = loaded.config.storage.model_copy(update={"offline": True})
    problems: list[Problem] = []
    checked: list[ModelConfig] = []
    for index, config in enumerate(loaded.config.models):
        with contextlib.suppress(ApplianceError):
            problems += [
                loaded.problem(("models", index, *violation.path), violation.message)
                for violation in precheck_layout(config, settings)
            ]
            # A copy in the cache may be older than what the store has now.
            if "model" in config.storages and isinstance(filesystem_for(config.storages["model"].uri), LocalFilesystem):
                checked.append(config)
    unlimited = unlimited_models(loaded)
    if unlimited and not detect_hardware().is_cpu:
        problems += unlimited
    if problems:
        raise ConfigError(problems)
    return checked
