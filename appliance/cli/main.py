"""The command `appliance`; most of its commands are a file of this folder, imported when it is used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from appliance.core.distribution import NAME
from appliance.core.errors import ApplianceError, ConfigError
from appliance.core.suggestions import did_you_mean

# The modules of the commands that are not in this one.
_MODULES = {
    **{
        name: name
        for name in (
            "batch",
            "bench",
            "cache",
            "config",
            "convert",
            "diff",
            "export",
            "init",
            "plan",
            "probe",
            "pull",
            "serve",
            "smoke",
            "top",
            "validate",
        )
    },
    "lock": "pull",
    "schema": "validate",
}


# 128 and the number of SIGINT, as shells have it.
_INTERRUPTED = 130


class _Commands(click.Group):
    """Imports a command when it is used, and turns our errors into text on standard error and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as in the base class
        return sorted([*self.commands, *_MODULES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(f"appliance.cli.{_MODULES[cmd_name]}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and (hint := did_you_mean(args[0], self.list_commands(ctx))):
            ctx.fail(f"No such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # Any: as in the base class
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(_INTERRUPTED)
        except ApplianceError as error:
            from appliance.config.raw_config import printable

            # The text may quote a model's files, with signs that a terminal acts on.
            text = printable(str(error), kept="\t\n")
            if isinstance(error, ConfigError):
                count = len(error.problems)
                click.echo(f"{text}\n{count} problem{'s' if count > 1 else ''} found", err=True)
            else:
                click.echo(f"appliance: {text}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "-V", "--version", package_name=NAME, message="%(prog)s %(version)s")
def main() -> None:
    """Serve models from one YAML file.

    The file says which models to serve, where to download them from and how to place them on GPUs.
    Start with: appliance init
    """
    import structlog

    # Standard output is for what a command prints; `serve` configures the rest.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


@main.command()
def key() -> None:
    """Print a new API key and its SHA-256.

    Give the key to the client, and put the SHA-256 into the file, under server.api_keys: the key cannot be computed
    from it.
    """
    from appliance.config.server import new_key

    secret, digest = new_key()
    click.echo(f"key:    {secret}\nsha256: {digest}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands on TAB.

    \b
    bash: appliance completion bash > ~/.local/share/bash-completion/completions/appliance
    zsh:  appliance completion zsh > "${fpath[1]}/_appliance"
    fish: appliance completion fish > ~/.config/fish/completions/appliance.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    if script is None:
        raise AssertionError(f"click has no completion for {shell}; this is a bug")
    click.echo(script(main, {}, "appliance", "_APPLIANCE_COMPLETE").source())
