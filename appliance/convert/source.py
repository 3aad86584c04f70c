"""Any text that can be converted, and which format it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from appliance.config import yaml_parser
from appliance.config.raw_config import RawConfig, Source
from appliance.convert import litellm, manifests, shell, vllm
from appliance.convert.command_line import Word, parse
from appliance.convert.draft import Draft
from appliance.core.errors import ConfigError, Problem

FORMATS = (
    "an InferenceService, a ServingRuntime or an LLMInferenceService of KServe, the config.yaml of LiteLLM, "
    "or a command `vllm serve`"
)
"""What can be converted, for messages."""


def convert(text: str, source: str) -> Draft:
    """Convert a file of any of the formats.

    Raises:
        ConfigError: it is of none of them, or has no model.
    """
    draft = Draft(source)
    if re.search(r"^(kind|model_list):", text, re.MULTILINE):
        for raw in _documents(text, source):
            _add_document(raw, draft)
    else:
        commands = list(shell.commands(text))
        # A text that is no script has no list of what it has instead of commands.
        for words in commands if any(shell.after_serve(words) is not None for words in commands) else ():
            _add_command(draft, words)
    return _with_models(draft)


def convert_words(words: Sequence[Word], source: str) -> Draft:
    """Convert one command line of vLLM.

    Raises:
        ConfigError: it is none.
    """
    draft = Draft(source)
    _add_command(draft, words)
    return _with_models(draft)


def _with_models(draft: Draft) -> Draft:
    if "models" in draft.data:
        return draft
    faults = [Problem(draft.source, each.line, 1, each.what, each.reason) for each in draft.unkept]
    raise ConfigError(faults or [Problem(draft.source, 1, 1, "", f"is not {FORMATS}")])


def _documents(text: str, source: str) -> Iterator[RawConfig]:
    """Each document of a file, with the lines that it has in the whole file."""
    start = 0
    for document in re.split(r"^---.*$", text, flags=re.MULTILINE):
        padded = "\n" * start + document
        start += document.count("\n")
        if document.strip():
            raw = yaml_parser.parse(padded, Source.of_file(source, padded))
            if raw.errors:
                raise ConfigError([error.problem() for error in raw.errors])
            if isinstance(raw.data, dict):
                yield raw


def _add_document(raw: RawConfig, draft: Draft) -> None:
    if "model_list" in raw.data:
        litellm.convert(raw, draft)
    else:
        manifests.convert(raw, draft)


def _add_command(draft: Draft, words: Sequence[Word]) -> None:
    options = shell.after_serve(words)
    # The values may be secrets.
    for word in shell.assignments(words):
        draft.drop(word.line, word.text.partition("=")[0], "set the variable for `appliance serve` too")
    if options is None:
        if not shell.assignments(words):
            draft.drop(words[0].line, words[0].text, "is no command of vLLM")
        return
    line = parse(options)
    vllm.add_model(draft, line)
    if "server" not in draft.data:
        vllm.add_server(draft, line)
