"""Any text that can be converted, and which format it has."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from appliance.config import yaml_parser
from appliance.config.json_schema import OPTIONS, engine_schema
from appliance.config.loader import errors_in
from appliance.config.masking import is_secret_name
from appliance.config.raw_config import RawConfig, Source, items
from appliance.config.validators import Validator
from appliance.convert import litellm, manifests, shell, vllm
from appliance.convert.command_line import Word, option_words, parse
from appliance.convert.draft import Draft, without_marks
from appliance.core.errors import ConfigError, Problem

FORMATS = (
    "an InferenceService, a ServingRuntime or an LLMInferenceService of KServe, a Deployment of vLLM, the config.yaml "
    "of LiteLLM, a file of vLLM's options, or a command `vllm serve`"
)
"""What can be converted, for messages."""

_HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(?P<end>\w+)\1.*\n(?P<body>(?:.*\n)*?)[ \t]*(?P=end)[ \t]*$", re.MULTILINE)

_SET_TOO = "set the variable for `appliance serve` too"


def convert(text: str, source: str, validators: Sequence[Validator] = ()) -> Draft:
    """Convert a file of any of the formats; the `validators` run beside those of the package `config`.

    Raises:
        ConfigError: it is of none of them, or has no model.
    """
    draft, text = Draft(source), _here_documents(without_marks(text))
    if re.search(r"\A\s*\{|^(kind|model_list):", text, re.MULTILINE):
        for raw in _documents(text, source):
            _add_document(raw, draft)
        return _finished(draft, validators)
    options = _mapping(text, source)
    commands = list(shell.commands(text)) if re.search("vllm|huggingfaceserver", text) else []
    known = {key.replace("-", "_") for key in options.data} & engine_schema()[OPTIONS].keys() if options else set()
    if options and 2 * len(known) > len(options.data):
        # A file for `vllm serve --config`.
        _add_model(draft, list(option_words(options)))
    elif not options and any(shell.after_serve(words) is not None for words in commands):
        _add_script(draft, commands)
    return _finished(draft, validators)


def convert_words(words: Sequence[Word], source: str, validators: Sequence[Validator] = ()) -> Draft:
    """Convert one command line of vLLM; the `validators` run beside those of the package `config`.

    Raises:
        ConfigError: it is none.
    """
    draft = Draft(source)
    _add_script(draft, [[word._replace(text=without_marks(word.text)) for word in words]])
    return _finished(draft, validators)


def _finished(draft: Draft, validators: Sequence[Validator]) -> Draft:
    """The draft without what makes it invalid."""
    draft.mend(partial(errors_in, validators=validators))
    if "models" not in draft.data:
        unkept = sorted(draft.unkept, key=lambda each: each.line)
        faults = [Problem(each.source, each.line, 1, each.what, each.reason) for each in unkept]
        raise ConfigError(faults or [Problem(draft.source, 1, 1, "", f"is not {FORMATS}")])
    return draft


def _here_documents(text: str) -> str:
    """The text without the commands around `kubectl apply -f - <<EOF`; what is left stays on its lines."""
    made, start = "", 0
    for found in _HERE_DOCUMENT.finditer(text):
        made += "\n" * text.count("\n", start, found.start("body")) + textwrap.dedent(found["body"])
        start = found.end("body")
    return made if re.search(r"^kind:", made, re.MULTILINE) else text


def _documents(text: str, source: str) -> Iterator[RawConfig]:
    """Each document of a file, with the lines that it has in the whole file."""
    start = 0
    for document in re.split(r"^---.*$", text, flags=re.MULTILINE):
        padded = "\n" * start + document
        start += document.count("\n")
        if document.strip():
            raw = _parsed(padded, source)
            if isinstance(raw.data, dict):
                yield raw


def _parsed(text: str, source: str) -> RawConfig:
    try:
        raw = yaml_parser.parse(text, Source.of_file(source, text))
        faults = [error.problem() for error in raw.errors]
    except ConfigError as error:
        faults = list(error.problems)
    if faults and "{{" in text:
        remedy = "must be rendered first, as by `helm template`"
        raise ConfigError([replace(fault, message=f"{fault.message}; a template {remedy}") for fault in faults[:1]])
    if faults:
        raise ConfigError(faults)
    return raw


def _mapping(text: str, source: str) -> RawConfig | None:
    """The text as YAML if it is a mapping; a command with JSON in it may look like one of a single key."""
    try:
        raw = _parsed(text, source)
    except ConfigError:
        return None
    is_mapping = isinstance(raw.data, dict) and not any(re.search(r"\s", key) for key in raw.data)
    return raw if is_mapping else None


def _add_document(raw: RawConfig, draft: Draft) -> None:
    if "model_list" in raw.data:
        litellm.convert(raw, draft)
    elif str(raw.data.get("kind")).endswith("List"):
        # As `kubectl get` prints several.
        for index, _ in items(raw.data.get("items")):
            manifests.convert(raw, draft, ("items", index))
    else:
        manifests.convert(raw, draft)


def _add_script(draft: Draft, commands: Sequence[Sequence[Word]]) -> None:
    """Add the models of all commands of vLLM, each with the variables that are exported before it."""
    exported: dict[str, Word] = {}
    for words in commands:
        options, given = shell.after_serve(words), dict(shell.environment(words))
        is_export = words[0].text == "export"
        for name, word in given.items():
            if options is not None or is_export or is_secret_name(name):
                draft.at(word.line).drop(name, _SET_TOO)
        exported |= given if is_export else {}
        if options is not None:
            _drop_container(draft, words)
            _add_model(draft, options, exported | given)
        elif not is_export and len(words) > len(given):
            draft.at(words[0].line).drop(words[0].text, "is no command of vLLM")


def _drop_container(draft: Draft, words: Sequence[Word]) -> None:
    if options := shell.container_options(words):
        reason = "its options belong to the container; give them to Appliance's image too"
        draft.at(options[0].line).drop("docker run", reason)


def _add_model(draft: Draft, words: Sequence[Word], environment: Mapping[str, Word] | None = None) -> None:
    line = parse(words, _read_options)
    vllm.add_api_key(line, environment or {})
    try:
        vllm.add_model(draft, line)
        vllm.add_server(draft, line)
    except vllm.NoModelError:
        draft.at(words[0].line if words else 1).drop("vllm serve", "names no model; must be vllm serve MODEL")


def _read_options(path: str) -> RawConfig:
    return yaml_parser.read(Path(path))
