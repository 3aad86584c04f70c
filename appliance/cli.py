"""
The command line: serve, validate, plan, pull, lock, cache, schema, smoke.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from appliance import logs
from appliance.cache import cache
from appliance.config import Loaded, load, schema_of
from appliance.errors import ApplianceError, ConfigError, Problem
from appliance.models import SECTIONS
from appliance.plan import Hardware

_FILE = click.Path(path_type=Path)

_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Set one value over the file and the environment, such as server.port=9000 or "
    "models.NAME.engine.max_model_len=4096. May be given several times.",
)
_offline = click.option(
    "--offline", is_flag=True, help="Use only what is in the cache, and make no connection to any store."
)
_GBIT = "Speed of the network in Gbit/s, for the time it takes to bring the bytes."
_frozen = click.option(
    "--frozen", is_flag=True, help="Refuse bytes that appliance.lock, beside FILE, does not name as they are."
)


class _Verbs(click.Group):
    """
    Turns every error of ours into its text on standard error and its exit code.
    """

    def invoke(self, ctx: click.Context) -> Any:  # Any: as click has it
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            count = len(error.problems)
            click.echo(f"{error}\n{count} problem{'s' if count > 1 else ''} found", err=True)
            ctx.exit(error.exit_code)
        except ApplianceError as error:
            click.echo(f"appliance: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="appliance", message="%(package)s %(version)s")
def main() -> None:
    """
    Serve models from one YAML file.

    The file says which models to serve, where their bytes lie and how they sit on the GPUs.
    Start with: appliance serve examples/chat.yaml
    """


@main.command()
@click.argument("file", type=_FILE)
@_offline
@_frozen
@_overrides
def serve(file: Path, offline: bool, frozen: bool, overrides: Sequence[str]) -> NoReturn:
    """
    Check FILE, bring its models to life, and answer calls until SIGTERM.

    The port answers at once; /readyz says when the models do. SIGTERM or Ctrl-C lets requests under way
    finish, a second one ends at once. Bytes are held to appliance.lock beside FILE where there is one.
    """
    loaded = load(file, _all(overrides, offline, frozen))
    # The web framework is no business of the verbs that only read a file.
    from appliance.server import run

    run(loaded.config, loaded.secrets)


@main.command()
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to print problems.")
@_overrides
def validate(files: Sequence[Path], format_: str, overrides: Sequence[str]) -> None:
    """
    Check each FILE, offline and within a second, and print every problem with its line and column.

    Exit code 0 when all are good, 2 when one is not.
    """
    found = {file: _problems(file, overrides) for file in files}
    if format_ == "json":
        click.echo(json.dumps([_report(file, problems) for file, problems in found.items()], indent=2))
    else:
        for file, problems in found.items():
            click.echo("\n".join(str(problem) for problem in problems) if problems else f"{file}: good")
    sys.exit(ConfigError.exit_code if any(found.values()) else 0)


@main.command()
@click.argument("file", type=_FILE)
@click.option("--gpu", metavar="NAME-GB:COUNT", help="Plan for hardware that is not here, such as h100-80gb:8.")
@click.option("--gbit", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help=_GBIT)
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to print plans.")
@click.option("--probes", is_flag=True, help="Print the probes of a Kubernetes container instead, as YAML.")
@click.option("--force", is_flag=True, help="Take no estimate of memory for a refusal.")
@_offline
@_overrides
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
    """
    Say what FILE's models come to, before anything is fetched: memory of each rank, tokens, times.

    Only configs and headers are read. Exit code 2 when a layout cannot work, with its line and the nearest layouts
    that do.
    """
    from appliance import planned

    loaded = load(file, _all(overrides, offline, frozen=False))
    _log_quietly(loaded)
    made = list(planned.plans(loaded.config, _hardware(gpu), gbit))
    plans = [each for _, each in made]
    click.echo(planned.show_probes(loaded.config, plans) if probes else planned.show(plans, format_))
    planned.judge(loaded, made, force=force)


@main.command()
@click.argument("file", type=_FILE)
@click.option("--explain", is_flag=True, help="Fetch nothing; say from where, as whom, which files, and what is here.")
@_offline
@_frozen
@_overrides
def pull(file: Path, explain: bool, offline: bool, frozen: bool, overrides: Sequence[str]) -> None:
    """
    Bring the bytes of FILE's models to this machine and stop, so that serving them later starts at once.

    Every byte is read again at the end, and held to appliance.lock beside FILE where there is one.
    """
    from appliance import pull as bringing

    loaded = load(file, _all(overrides, offline, frozen))
    _log_quietly(loaded)
    (bringing.explain if explain else bringing.pull)(loaded.config)


@main.command()
@click.argument("file", type=_FILE)
@_overrides
def lock(file: Path, overrides: Sequence[str]) -> None:
    """
    Write appliance.lock beside FILE: every file of its models as it is now, with size and SHA-256.

    The bytes are brought for it. Commit the lock: serve and pull then refuse any other bytes, and a branch of the
    hub stays at the commit that is locked.
    """
    from appliance import pull as bringing

    loaded = load(file, overrides)
    _log_quietly(loaded)
    bringing.lock(loaded.config)


main.add_command(cache)


@main.command()
@click.argument("class_", metavar="[CLASS]", type=click.Choice(sorted(SECTIONS)), required=False)
def schema(class_: str | None) -> None:
    """
    Print the JSON Schema of the whole file, or of one model CLASS.
    """
    click.echo(json.dumps(schema_of(class_), indent=2))


@main.command()
@click.argument("files", type=_FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--timeout", type=float, default=1800, show_default=True, help="Seconds each FILE may take to be ready.")
@_overrides
def smoke(files: Sequence[Path], timeout: float, overrides: Sequence[str]) -> None:
    """
    Serve each FILE for real, ask what its `expect:` promises, and stop it.

    Exit code 0 when every promise held.
    """
    from appliance.smoke import smoke as smoke_one

    for file in files:
        loaded = load(file, overrides)
        _log_quietly(loaded)
        click.echo(f"{file}")
        asyncio.run(smoke_one(file, loaded.config, overrides, timeout, lambda line: click.echo(f"  {line}")))
        click.echo("  every promise held" if loaded.config.expect else "  it was ready; expect: promises nothing")


def _hardware(gpu: str | None) -> Hardware:
    """
    The hardware that is named, else this machine's.
    """
    from appliance.plan import named, seen

    try:
        return seen() if gpu is None else named(gpu)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--gpu") from error


def _all(overrides: Sequence[str], offline: bool, frozen: bool) -> Sequence[str]:
    """
    The overrides, with those that have a flag of their own.
    """
    flags = {"storage.offline=true": offline, "storage.frozen=true": frozen}
    return [*overrides, *(override for override, is_set in flags.items() if is_set)]


def _problems(file: Path, overrides: Sequence[str]) -> Sequence[Problem]:
    try:
        load(file, overrides)
    except ConfigError as error:
        return error.problems
    return ()


def _report(file: Path, problems: Sequence[Problem]) -> dict[str, Any]:  # Any: JSON values
    keys = ("source", "line", "column", "path", "message")
    return {
        "file": str(file),
        "valid": not problems,
        "problems": [{key: getattr(problem, key) for key in keys} for problem in problems],
    }


def _log_quietly(loaded: Loaded) -> None:
    logs.configure("auto", "warning", loaded.secrets)
