"""The command `serve`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from appliance.cli.options import FILE, frozen, load_config, offline, overrides, to_overrides, unlimited_models
from appliance.config import LoadedConfig
from appliance.config.models import ModelConfig
from appliance.core.errors import ApplianceError, ConfigError, Problem


@click.command()
@click.argument("file", type=FILE)
@offline
@frozen
@overrides
def serve(file: Path, offline: bool, frozen: bool, overrides: Sequence[str]) -> NoReturn:
    """Check FILE, start its models, and answer requests until SIGTERM.

    The port answers at once; /readyz says when the models do. On SIGTERM or Ctrl-C, running requests are finished; a
    second signal ends the server at once. On SIGHUP, FILE is read again and its changes are applied. Where there is an
    appliance.lock beside FILE, downloaded files must match it.
    """
    loaded = load_config(file, to_overrides(overrides, offline=offline, frozen=frozen))
    from appliance.core.system import exit_now
    from appliance.models.factory import ModelFactory
    from appliance.server import serve as serve_config

    exit_now(serve_config(loaded, ModelFactory(_check_local_layouts(loaded))))


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
