"""The command line: serve, validate, plan, diff, pull, lock, cache, probe, key, schema, smoke."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from appliance.cli.cache import cache
from appliance.cli.diff import as_json, as_text, diff_help
from appliance.cli.options import FILE, frozen, load_config, offline, overrides, to_overrides
from appliance.cli.plan import plan, require_possible
from appliance.cli.validate import validate as validate_one
from appliance.config import LoadedConfig, differences, schema_of
from appliance.config.models import MODEL_CONFIGS
from appliance.config.source_location import printable
from appliance.core import logging_setup
from appliance.core.errors import ApplianceError, ConfigError


class _Verbs(click.Group):
    """Turns every error of ours into its text on standard error and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:  # Any: as click has it
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            count = len(error.problems)
            click.echo(f"{_printable(str(error))}\n{count} problem{'s' if count > 1 else ''} found", err=True)
            ctx.exit(error.exit_code)
        except ApplianceError as error:
            click.echo(f"appliance: {_printable(str(error))}", err=True)
            ctx.exit(error.exit_code)


def _printable(text: str) -> str:
    """The lines of a text, which may quote a model's files, without anything that a terminal acts on."""
    return "\n".join(map(printable, text.split("\n")))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="appliance", message="%(package)s %(version)s")
def main() -> None:
    """Serve models from one YAML file.

    The file says which models to serve, where their bytes lie and how they sit on the GPUs.
    Start with: appliance serve examples/chat.yaml
    """


@main.command()
@click.argument("file", type=FILE)
@offline
@frozen
@overrides
def serve(file: Path, offline: bool, frozen: bool, overrides: Sequence[str]) -> NoReturn:
    """Check FILE, bring its models to life, and answer calls until SIGTERM.

    The port answers at once; /readyz says when the models do. SIGTERM or Ctrl-C lets requests under way
    finish, a second one ends at once. SIGHUP reads FILE again and applies what differs. Bytes are held to
    appliance.lock beside FILE where there is one.
    """
    loaded = load_config(file, to_overrides(overrides, offline, frozen))
    # The web framework is no business of the verbs that only read a file.
    from appliance.server import run

    require_possible(loaded)
    run(loaded)


@main.command()
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--deep", is_flag=True, help="Read the models' config.json too, and check their layouts; no weights.")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to print problems.")
@overrides
def validate(files: Sequence[Path], deep: bool, format_: str, overrides: Sequence[str]) -> None:
    """Check each FILE, offline and within a second, and print every problem with its line and column.

    Exit code 0 when all are good, 2 when one is not. With --deep, a storage that cannot be looked into is named too,
    and where nothing else is wrong the exit code is that of its fault.
    """
    found = [validate_one(file, overrides, deep=deep) for file in files]
    if format_ == "json":
        click.echo(json.dumps([each.as_json() for each in found], indent=2))
    else:
        click.echo(_printable("\n".join(each.as_text() for each in found)))
    wrong = any(each.problems for each in found)
    sys.exit(ConfigError.exit_code if wrong else next((each.exit_code for each in found if each.exit_code), 0))


@main.command(help=diff_help())
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@overrides
def diff(old: Path, new: Path, format_: str, overrides: Sequence[str]) -> None:
    """Compare two files; the help is made from what the keys say of themselves."""
    found = differences(load_config(old, overrides), load_config(new, overrides))
    click.echo(json.dumps(as_json(found), indent=2) if format_ == "json" else as_text(found))
    sys.exit(1 if found else 0)


@main.command()
@click.argument("file", type=FILE)
@click.option("--explain", is_flag=True, help="Fetch nothing; say from where, as whom, which files, and what is here.")
@offline
@frozen
@overrides
def pull(file: Path, explain: bool, offline: bool, frozen: bool, overrides: Sequence[str]) -> None:
    """Bring the bytes of FILE's models to this machine and stop, so that serving them later starts at once.

    Every byte is read again at the end, and held to appliance.lock beside FILE where there is one.
    """
    from appliance.cli import pull as bringing

    loaded = load_config(file, to_overrides(overrides, offline, frozen))
    _log_quietly(loaded)
    (bringing.explain if explain else bringing.pull)(loaded.config)


@main.command()
@click.argument("file", type=FILE)
@overrides
def lock(file: Path, overrides: Sequence[str]) -> None:
    """Write appliance.lock beside FILE: every file of its models as it is now, with size and SHA-256.

    The bytes are brought for it. Commit the lock: serve and pull then refuse any other bytes, and a branch of the
    hub stays at the commit that is locked.
    """
    from appliance.cli import pull as bringing

    loaded = load_config(file, overrides)
    _log_quietly(loaded)
    bringing.lock(loaded.config)


main.add_command(plan)
main.add_command(cache)


@main.command()
@click.argument("what", type=click.Choice(["live", "ready", "started"]), default="live", metavar="[live|ready|started]")
@click.argument("file", type=FILE, required=False)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=4, show_default=True, help="Seconds to wait.")
@overrides
def probe(what: str, file: Path | None, timeout: float, overrides: Sequence[str]) -> None:
    """Ask the server of FILE whether it is live, ready or started, and print what it says.

    It is asked on this machine, where FILE, the environment and --set have it listen. Without FILE it is the one
    server that runs here, as in a container. Exit code 0 when it says yes, 1 when it says no or does not answer.
    """
    from appliance.cli import probe as probing

    loaded = _running(overrides) if file is None else load_config(file, overrides)
    is_so, said = probing.ask(loaded.config.server, what, timeout)
    click.echo(said)
    sys.exit(0 if is_so else 1)


def _running(overrides: Sequence[str]) -> LoadedConfig:
    """The config of the one server that runs here."""
    from appliance.cli import probe as probing

    command = probing.running()
    given = serve.make_context("serve", list(command.arguments)).params
    return load_config(command.directory / given["file"], [*given["overrides"], *overrides], environ=command.environ)


@main.command()
def key() -> None:
    """Make a random API key, and print it with its SHA-256.

    The key goes to whoever may ask, and sha256 into the file, under server.api_keys: nobody can get the one from the
    other.
    """
    from appliance.cli.key import new

    made, digest = new()
    click.echo(f"key:    {made}\nsha256: {digest}")


@main.command()
@click.argument("class_", metavar="[CLASS]", type=click.Choice(sorted(MODEL_CONFIGS)), required=False)
def schema(class_: str | None) -> None:
    """Print the JSON Schema of the whole file, or of one model CLASS."""
    click.echo(json.dumps(schema_of(class_), indent=2))


@main.command()
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--timeout", type=float, default=1800, show_default=True, help="Seconds each FILE may take to be ready.")
@overrides
def smoke(files: Sequence[Path], timeout: float, overrides: Sequence[str]) -> None:
    """Serve each FILE for real, ask what its `expect:` promises, and stop it.

    Exit code 0 when every promise held.
    """
    from appliance.cli.smoke import smoke as smoke_one

    for file in files:
        loaded = load_config(file, overrides)
        _log_quietly(loaded)
        click.echo(f"{file}")
        asyncio.run(smoke_one(file, loaded.config, overrides, timeout, lambda line: click.echo(f"  {line}")))
        click.echo("  every promise held" if loaded.config.expect else "  it was ready; expect: promises nothing")


def _log_quietly(loaded: LoadedConfig) -> None:
    logging_setup.configure("auto", "warning", loaded.secrets)
