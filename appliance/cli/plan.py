"""The command `plan`: the memory that models need on GPUs, before anything is downloaded."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import click
from ruamel.yaml import YAML

from appliance.cli.options import (
    file_argument,
    format_option,
    load_quietly,
    offline,
    overrides,
    to_overrides,
    unlimited_models,
)
from appliance.config import Config, LoadedConfig
from appliance.config.models import LanguageModelConfig
from appliance.config.raw_config import printable
from appliance.core.errors import ConfigError, Problem
from appliance.planner.hardware import Hardware, detect_hardware, named_hardware
from appliance.planner.memory import EngineRequirements
from appliance.planner.model_info import inspect_model
from appliance.planner.planner import Plan
from appliance.planner.planner import plan as plan_model
from appliance.planner.planner import probes as probes_of
from appliance.planner.predictor_plan import PredictorPlan, plan_predictor
from appliance.planner.report import report


@click.command()
@file_argument
@click.option("--gpu", metavar="NAME-GB:COUNT", help="Plan for hardware that is not here, such as h100-80gb:8.")
@click.option(
    "--gbit",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Speed of the network in Gbit/s, to estimate the time of the download.",
)
@format_option("How to print plans.")
@click.option("--probes", is_flag=True, help="Print the probes of a Kubernetes container instead, as YAML.")
@click.option("--force", is_flag=True, help="Report too little memory as a warning, not as an error.")
@offline
@overrides
def plan(
    file: Path | None,
    gpu: str | None,
    gbit: float,
    format_: str,
    probes: bool,
    force: bool,
    offline: bool,
    overrides: Sequence[str],
) -> None:
    """Print the memory that FILE's models need, and times.

    It is the memory of each rank and the tokens that fit, before anything is downloaded: only configs and headers are
    read. Exit code 2 when a layout cannot work, with its line and the nearest layouts that do.
    """
    loaded = load_quietly(file, to_overrides(overrides, offline=offline))
    planned = list(plans(loaded.config, _hardware(gpu), gbit))
    every: list[tuple[int, Plan | PredictorPlan]] = [*planned, *predictor_plans(loaded.config, gbit)]
    shown = [plan for _, plan in sorted(every, key=itemgetter(0))]
    click.echo(_show_probes(loaded.config, shown) if probes else _show(shown, format_))
    _check(loaded, planned, force=force)


def _hardware(gpu: str | None) -> Hardware:
    """The hardware with this name, or this machine's."""
    try:
        return detect_hardware() if gpu is None else named_hardware(gpu)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--gpu") from error


def plans(config: Config, hardware: Hardware, gbit: float) -> Iterator[tuple[int, Plan]]:
    """Plan each model that vLLM serves; yield its index among the models, and its plan.

    Raises:
        StorageError: the files of a model cannot be read.
    """
    for index, model in enumerate(config.models):
        requirements = EngineRequirements.of(model)
        if requirements is None or not isinstance(model, LanguageModelConfig) or model.storage is None:
            continue
        info = inspect_model(model.storage, config.storage)
        yield index, plan_model(model.name, info, model.layout, requirements, hardware, gbit)


def predictor_plans(config: Config, gbit: float) -> Iterator[tuple[int, PredictorPlan]]:
    """Plan each predictor that a framework computes; yield its index among the models, and its plan.

    Raises:
        StorageError: the files of a model cannot be read.
    """
    plans = ((index, plan_predictor(model, config.storage, gbit)) for index, model in enumerate(config.models))
    yield from ((index, plan) for index, plan in plans if plan is not None)


def _show(planned: Sequence[Plan | PredictorPlan], format_: str) -> str:
    if format_ == "json":
        return json.dumps([plan.describe() for plan in planned], indent=2)
    # Names come out of the models' files, and may have any signs in them.
    texts = [plan.report() if isinstance(plan, PredictorPlan) else report(plan) for plan in planned]
    text = printable("\n\n".join(texts), kept="\t\n")
    return text or "no model here is computed by vLLM or a framework: there is nothing to plan"


def _show_probes(config: Config, planned: Sequence[Plan | PredictorPlan]) -> str:
    text = io.StringIO()
    port = config.server.probe_port or config.server.port
    YAML().dump(probes_of([plan.timing for plan in planned], port), text)
    return text.getvalue().rstrip()


def _check(loaded: LoadedConfig, planned: Sequence[tuple[int, Plan]], *, force: bool) -> None:
    """Check that all plans can work; with `force`, too little memory is a warning.

    Raises:
        ConfigError: one cannot.
    """
    errors: list[Problem] = []
    found = [
        (loaded.problem(("models", index, *violation.path), violation.message), violation.is_memory)
        for index, plan in planned
        for violation in plan.refusals
    ]
    if not all(plan.hardware.is_cpu for _, plan in planned):
        found += [(problem, True) for problem in unlimited_models(loaded)]
    for problem, is_memory in found:
        if force and is_memory:
            click.echo(f"{problem}\nforced: it may fail once it loads", err=True)
        else:
            errors.append(problem)
    if errors:
        raise ConfigError(errors)
