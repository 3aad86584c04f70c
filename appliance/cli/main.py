"""The command `appliance`; each of its commands is a file of this folder, imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from appliance.core.errors import ApplianceError, ConfigError

_COMMANDS = ("cache", "diff", "key", "lock", "plan", "probe", "pull", "schema", "serve", "smoke", "validate")


class _Commands(click.Group):
    """Imports a command when it is used, and turns our errors into text on standard error and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as in the base class
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"appliance.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # Any: as in the base class
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            count = len(error.problems)
            click.echo(f"{_printable_lines(error)}\n{count} problem{'s' if count > 1 else ''} found", err=True)
            ctx.exit(error.exit_code)
        except ApplianceError as error:
            click.echo(f"appliance: {_printable_lines(error)}", err=True)
            ctx.exit(error.exit_code)


def _printable_lines(error: Exception) -> str:
    from appliance.config.source_location import printable

    # The text may quote a model's files, with signs that a terminal acts on.
    return "\n".join(map(printable, str(error).split("\n")))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="appliance", message="%(package)s %(version)s")
def main() -> None:
    """Serve models from one YAML file.

    The file says which models to serve, where to download them from and how to place them on GPUs.
    Start with: appliance serve examples/chat.yaml
    """
