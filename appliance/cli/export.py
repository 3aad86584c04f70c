"""The command `export`: files that deploy a config."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import click

from appliance.cli.options import FILE, Choice, default_file, force, load_config, offline, to_overrides, write_files
from appliance.cli.plan import plans, predictor_plans
from appliance.config import LoadedConfig
from appliance.config.interpolation import variables
from appliance.config.models import AdapterConfig, LocalModelConfig, ProxyConfig
from appliance.config.server import is_loopback
from appliance.config.sources import PREFIX
from appliance.config.yaml_parser import read
from appliance.core.errors import ApplianceError
from appliance.export.containers import compose, quadlet
from appliance.export.deployment import Deployment, Estimate, Platform, deployment
from appliance.export.kubernetes import helm, kserve, kubernetes
from appliance.export.systemd import systemd
from appliance.planner.hardware import detect_hardware
from appliance.planner.planner import Plan
from appliance.planner.predictor_plan import PredictorPlan

# Stands for the secrets that this machine does not have.
_PLACEHOLDER = "placeholder-for-the-unset-{}"

_PLATFORMS: Mapping[str, Platform] = {"compose": "container", "quadlet": "container", "systemd": "machine"}

_FORMATS: Mapping[str, Callable[[Deployment], str | Mapping[str, str]]] = MappingProxyType(
    {
        "compose": compose,
        "quadlet": quadlet,
        "systemd": lambda each: systemd(each, Path(sys.argv[0]).absolute()),
        "kubernetes": kubernetes,
        "helm": helm,
        "kserve": kserve,
    }
)


@click.command()
@click.argument("format_", metavar="FORMAT", type=Choice(list(_FORMATS)))
@click.argument("file", type=FILE, required=False)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write here instead of printing; helm needs a directory."
)
@click.option("--name", help="Name of the service.  [default: metadata.name of FILE, or appliance]")
@click.option(
    "--variant",
    type=Choice(["cpu", "gpu", "proxy"]),
    help="Variant of the image.  [default: proxy if no model needs an engine, else cpu]",
)
@click.option("--image", help="Container image.  [default: localhost/appliance:VARIANT]")
@force
@offline
def export(
    format_: str,
    file: Path | None,
    output: Path | None,
    name: str | None,
    variant: str | None,
    image: str | None,
    force: bool,
    offline: bool,
) -> None:
    """Write a deployment of FILE for containers or systemd.

    FORMAT is compose, quadlet, systemd, kubernetes, helm or kserve. It has the ports, volumes and secrets that FILE
    refers to, probes with the time that its models take to load, the time that a stop takes, and no rights that the
    server does not need. Secrets are not in it: comments say how they are made. Variables that are not set here need
    no value.
    """
    if format_ == "helm" and output is None:
        raise click.UsageError("a chart has several files; name a directory with --output")
    file = file or default_file()
    needed = variables(read(file))
    # What the environment puts over the file here does not hold there.
    here = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    environ = {**{each: _PLACEHOLDER.format(each) for each, is_required in needed.items() if is_required}, **here}
    loaded = load_config(file, to_overrides([], offline=offline), environ=environ)
    variant = variant or (
        "cpu" if any(isinstance(each, LocalModelConfig) for each in loaded.config.models) else "proxy"
    )
    image = image or f"localhost/appliance:{variant}"
    made = deployment(
        loaded,
        needed,
        name=name,
        image=image,
        has_gpus=variant == "gpu",
        estimate=_estimate(loaded),
        platform=_PLATFORMS.get(format_, "cluster"),
    )
    if _PLATFORMS.get(format_) != "machine":
        for url in _loopback_urls(loaded):
            click.echo(
                f"appliance: {url}: in a container this address is the container itself; name another host", err=True
            )
    text = _FORMATS[format_](made)
    if output is None and isinstance(text, str):
        click.echo(text, nl=False)
    elif output is not None:
        write_files(
            {output: text} if isinstance(text, str) else {output / key: each for key, each in text.items()}, force=force
        )


def _loopback_urls(loaded: LoadedConfig) -> Iterator[str]:
    """The addresses of upstreams on this machine."""
    for model in loaded.config.models:
        upstreams = model.upstreams if isinstance(model, ProxyConfig) else ()
        target = model.target if isinstance(model, AdapterConfig) else ""
        for each in (*upstreams, target):
            if not isinstance(each, str) and is_loopback(urlsplit(each.url).hostname or ""):
                yield each.url


def _estimate(loaded: LoadedConfig) -> Estimate | None:
    """The plans of all models together; None where a storage cannot be read."""
    config = loaded.config
    try:
        planned: list[Plan | PredictorPlan] = [plan for _, plan in plans(config, detect_hardware(), 1)]
        planned += [plan for _, plan in predictor_plans(config, 1)]
    except ApplianceError as error:
        click.echo(f"appliance: times and memory are guesses, because a model cannot be planned: {error}", err=True)
        return None
    seconds = sum(plan.timing.download_seconds + plan.timing.load_seconds for plan in planned)
    return Estimate(seconds, sum(plan.size_bytes for plan in planned))
