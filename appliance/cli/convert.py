"""The command `convert`: a config from what another server is configured with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from appliance.cli.options import VALIDATORS, force, write_files
from appliance.config.raw_config import printable, reason_of
from appliance.convert.command_line import Word
from appliance.convert.draft import Draft
from appliance.convert.source import convert as convert_text
from appliance.convert.source import convert_words
from appliance.core.errors import ConfigError, Problem


# Options of vLLM's pass through; short ones of this command would be found inside of them, such as `-h` in `-dph`.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option("--output", type=click.Path(path_type=Path), help="Write the config here instead of printing it.")
@force
@click.argument("source", nargs=-1, required=True, type=click.UNPROCESSED, metavar="FILE | vllm serve ...")
def convert(source: Sequence[str], output: Path | None, force: bool) -> None:
    """Write a config from one of KServe, vLLM or LiteLLM.

    FILE is an InferenceService, a ServingRuntime or an LLMInferenceService of KServe, a Deployment, StatefulSet or Pod
    of vLLM, a script with `vllm serve` or `docker run vllm/vllm-openai`, a file of options for `vllm serve --config`,
    or the config.yaml of LiteLLM; - is standard input. Or give the command line of vLLM itself.

    The config is valid, apart from variables that it refers to. Standard error lists, by line, everything that it does
    not keep. Exit code 2 if there is nothing to convert.
    """
    draft = _convert(source)
    text = draft.text()
    if output is None:
        click.echo(text, nl=False)
    else:
        write_files({output: text}, force=force)
    for each in sorted(draft.unkept, key=lambda each: (each.source != draft.source, each.source, each.line)):
        click.echo(printable(f"{each.source}:{each.line}: not kept: {each.what}: {each.reason}"), err=True)


def _convert(source: Sequence[str]) -> Draft:
    if len(source) > 1:
        return convert_words([Word(word, 1) for word in source], "the command line", VALIDATORS)
    name = "standard input" if source[0] == "-" else source[0]
    try:
        text = sys.stdin.read() if source[0] == "-" else Path(source[0]).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(name, None, None, "", f"cannot be read: {reason_of(error)}")]) from None
    return convert_text(text, name, VALIDATORS)
