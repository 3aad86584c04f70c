"""Plan every model of a config, print the plans, and refuse what cannot work with its line in the file."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from ruamel.yaml import YAML

from appliance.cli.options import FILE, load_config, offline, overrides, to_overrides
from appliance.config import Config, LoadedConfig
from appliance.config.models import LocalModelConfig
from appliance.config.source_location import printable
from appliance.core import logging_setup
from appliance.core.errors import ApplianceError, ConfigError, Problem
from appliance.planner import (
    ConstraintViolation,
    EngineRequirements,
    Hardware,
    Plan,
    detect_hardware,
    inspect_model,
    named_hardware,
    precheck_layout,
    probes,
)
from appliance.planner import plan as plan_one
from appliance.planner.report import report


@click.command()
@click.argument("file", type=FILE)
@click.option("--gpu", metavar="NAME-GB:COUNT", help="Plan for hardware that is not here, such as h100-80gb:8.")
@click.option(
    "--gbit",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Speed of the network in Gbit/s, for the time it takes to bring the bytes.",
)
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to print plans.")
@click.option("--probes", is_flag=True, help="Print the probes of a Kubernetes container instead, as YAML.")
@click.option("--force", is_flag=True, help="Take no estimate of memory for a refusal.")
@offline
@overrides
def plan(
    file: Path,
    gpu: str | None,
    gbit: float,
    format_: str,
    probes: bool,
    force: bool,
    offline: bool,
    overrides: Sequence[str],
) -> None:
    """Say what FILE's models come to, before anything is fetched: memory of each rank, tokens, times.

    Only configs and headers are read. Exit code 2 when a layout cannot work, with its line and the nearest layouts
    that do.
    """
    loaded = load_config(file, to_overrides(overrides, offline))
    logging_setup.configure("auto", "warning", loaded.secrets)
    made = list(plans(loaded.config, _hardware(gpu), gbit))
    shown = [each for _, each in made]
    click.echo(_show_probes(loaded.config, shown) if probes else _show(shown, format_))
    _judge(loaded, made, force=force)


def plans(config: Config, hardware: Hardware, gbit: float) -> Iterator[tuple[int, Plan]]:
    """The plan of each model that vLLM computes, with its place among the models.

    Raises:
        StorageError: the files of a model cannot be read.
    """
    for index, model_config in enumerate(config.models):
        requirements = EngineRequirements.of(model_config)
        if requirements is None or not isinstance(model_config, LocalModelConfig) or model_config.storage is None:
            continue
        info = inspect_model(model_config.storage, config.storage)
        yield index, plan_one(model_config.name, info, model_config.layout, requirements, hardware, gbit)


def _show(made: Sequence[Plan], form: str) -> str:
    """The plans as `text` or as `json`."""
    if form == "json":
        return json.dumps([each.describe() for each in made], indent=2)
    # What a model calls itself is whatever its file says.
    lines = "\n\n".join(map(report, made)).split("\n")
    return "\n".join(map(printable, lines)) or "no model here is computed by vLLM: there is nothing to plan"


def _show_probes(config: Config, made: Sequence[Plan]) -> str:
    """The probes of a container that serves the config, as YAML."""
    text = io.StringIO()
    port = config.server.probe_port or config.server.port
    YAML().dump(probes([each.timing for each in made], port), text)
    return text.getvalue().rstrip()


def _judge(loaded: LoadedConfig, made: Sequence[tuple[int, Plan]], *, force: bool) -> None:
    """Return when all plans can work; with `force`, memory is no reason that one cannot, and is told of.

    Raises:
        ConfigError: one cannot.
    """
    found = [(index, each) for index, plan in made for each in plan.refusals]
    found += [(index, each) for index, each in _crowded(made)]
    for index, each in found:
        if force and each.is_memory:
            click.echo(f"{_problem(loaded, index, each)}\nforced: it may fail once it loads", err=True)
    if faults := [_problem(loaded, index, each) for index, each in found if not (force and each.is_memory)]:
        raise ConfigError(faults)


def require_possible(loaded: LoadedConfig) -> None:
    """Return when nothing that lies on this machine speaks against a layout; no store is asked.

    Raises:
        ConfigError: one cannot work.
    """
    here = loaded.config.storage.model_copy(update={"offline": True})
    faults: list[Problem] = []
    for index, model_config in enumerate(loaded.config.models):
        # What is not here is looked at before it is fetched, while the port answers.
        with contextlib.suppress(ApplianceError):
            faults += [_problem(loaded, index, each) for each in precheck_layout(model_config, here)]
    if faults:
        raise ConfigError(faults)


def _crowded(made: Sequence[tuple[int, Plan]]) -> Iterator[tuple[int, ConstraintViolation]]:
    """Models that share GPUs and do not say how: each would take what vLLM takes when it is alone."""
    if len(made) < 2:
        return
    for index, plan in made:
        said = plan.layout.memory_fraction or plan.layout.kv_cache
        others = [each.layout for number, each in made if number != index]
        if not plan.hardware.is_cpu and not said and any(_share_devices(plan, other.devices) for other in others):
            fault = "is not set, and other models take memory of the same devices"
            yield (
                index,
                ConstraintViolation(
                    ("layout", "memory_fraction"), fault, "must be set for each of them", is_memory=True
                ),
            )


def _share_devices(plan: Plan, others: Sequence[int | str] | None) -> bool:
    mine = plan.layout.devices
    return mine is None or others is None or bool(set(mine) & set(others))


def _problem(loaded: LoadedConfig, index: int, refusal: ConstraintViolation) -> Problem:
    return loaded.problem(("models", index, *refusal.path), refusal.message)


def _hardware(gpu: str | None) -> Hardware:
    """The hardware that is named, else this machine's."""
    try:
        return detect_hardware() if gpu is None else named_hardware(gpu)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--gpu") from error
