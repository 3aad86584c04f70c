"""Arguments and options that several commands share, and how they load a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from appliance.config import LoadedConfig, load
from appliance.config.raw_config import Diagnostic, RawConfig, reason_of
from appliance.config.validators.layouts import shared_devices_have_limits
from appliance.core.errors import ConfigError, Problem
from appliance.core.suggestions import did_you_mean

# A file that cannot be read is an error of ours, like any other file that is wrong.
FILE = click.Path(path_type=Path, readable=False, allow_dash=True)
"""The type of an argument that is a config."""

file_argument = click.argument("file", type=FILE, required=False)

DEFAULT_FILES = (Path("appliance.yaml"), Path("/etc/appliance/config.yaml"))
"""The files that commands without FILE use, the first one that exists; the second is that of the container."""


def default_file(directory: Path = Path()) -> Path:
    """The config of a command that names none.

    Raises:
        ConfigError: there is none.
    """
    found = next((file for file in DEFAULT_FILES if (directory / file).is_file()), None)
    if found is None:
        names = " and no ".join(map(str, DEFAULT_FILES))
        fault = "cannot be found: no FILE is named"
        remedy = f"there is no {names}; name a FILE, or write one with: appliance init"
        raise ConfigError([Problem("the config", None, None, "", f"{fault}, and {remedy}")])
    return found


class Choice(click.Choice[str]):
    """One of some words, with a suggestion where another is like one of them."""

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        message, hint = super().get_invalid_choice_message(value, ctx), did_you_mean(str(value), self.choices)
        return f"{message.removesuffix('.')}; {hint}" if hint else message


overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Set one value over the file and the environment, such as server.port=9000 or "
    "models.NAME.engine.max_model_len=4096. May be given several times.",
)
offline = click.option("--offline", is_flag=True, help="Use only what is in the cache; connect to no store.")
frozen = click.option("--frozen", is_flag=True, help="Refuse files that differ from appliance.lock beside FILE.")


force = click.option("--force", is_flag=True, help="Replace files that exist.")


def format_option(description: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option `--format`, of text or JSON."""
    return click.option("--format", "format_", type=Choice(["text", "json"]), default="text", help=description)


def to_overrides(overrides: Sequence[str], *, offline: bool, frozen: bool = False) -> Sequence[str]:
    """The overrides, with those that have an option of their own."""
    options = {"storage.offline=true": offline, "storage.frozen=true": frozen}
    return [*overrides, *(override for override, is_set in options.items() if is_set)]


def load_config(
    file: Path | None, overrides: Sequence[str] = (), *, environ: Mapping[str, str] | None = None
) -> LoadedConfig:
    """Load a config, by default the one of `DEFAULT_FILES`, with the validators of every package.

    Raises:
        ConfigError: something is wrong.
    """
    return load(file or default_file(), overrides, environ=environ, validators=VALIDATORS)


def load_quietly(file: Path | None, overrides: Sequence[str]) -> LoadedConfig:
    """Load a config for a command that prints results: the log has warnings alone, without the config's secrets.

    Raises:
        ConfigError: something is wrong.
    """
    from appliance.core import logging_setup

    loaded = load_config(file, overrides)
    logging_setup.configure("auto", "warning", loaded.secrets)
    return loaded


def unlimited_models(loaded: LoadedConfig) -> Sequence[Problem]:
    """The models that share a GPU of this machine, or of one that a plan is for, without a limit of their memory."""
    if loaded.raw is None:
        raise AssertionError("the config of a command has a file; this is a bug")
    found = shared_devices_have_limits(loaded.raw, has_gpus=True)
    return [loaded.problem(each.path, each.message) for each in found]


def _check_adapters(raw: RawConfig) -> Iterator[Diagnostic]:
    # Template engines take long to import, and few files need them.
    if any(model.get("class") == "adapter" for _, model in raw.models()):
        from appliance.adapters.config_check import check

        yield from check(raw)


def _check_storages(raw: RawConfig) -> Iterator[Diagnostic]:
    from appliance.storage.config_check import check

    yield from check(raw)


def _check_engines(raw: RawConfig) -> Iterator[Diagnostic]:
    from appliance.engines.vllm.config_check import check

    yield from check(raw)


VALIDATORS = (_check_adapters, _check_engines, _check_storages)


def write_files(texts: Mapping[Path, str], *, force: bool, option: str = "--output") -> None:
    """Write the files of an option, and name them on standard error.

    Raises:
        ConfigError: one cannot be written.
        UsageError: one exists, and `force` is not given.
    """
    existing = [path for path in texts if path.is_file()]
    if existing and not force:
        raise click.UsageError(f"{existing[0]} exists; name another {option}, or replace it with --force")
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            fault = f"cannot be written: {reason_of(error)}; name another {option}"
            raise ConfigError([Problem(str(path), None, None, "", fault)]) from None
        click.echo(f"{path}: written", err=True)
