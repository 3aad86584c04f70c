"""Containers of manifests that run vLLM or KServe's huggingfaceserver."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ruamel.yaml.comments import CommentedMap

from appliance.config.masking import is_secret_name
from appliance.config.raw_config import DataPath, items
from appliance.convert import shell, vllm
from appliance.convert.command_line import Word, parse
from appliance.convert.draft import env, mapping
from appliance.convert.manifest import Manifest

# Flags of KServe's huggingfaceserver that vLLM calls something else.
_FLAGS: Mapping[str, str] = {
    "--model_name": "--served-model-name",
    "--model_id": "--model",
    "--model_dir": "--model",
    "--model_revision": "--revision",
    "--max_length": "--max-model-len",
    "--http_port": "--port",
}

# Its flags that have no meaning for vLLM.
_ITS_OWN = re.compile(
    r"--(backend|task|disable_lower_case|disable_special_tokens|tensor_input_names|return_token_type_ids"
    r"|return_offsets_mapping|return_probabilities|return_raw_logits|enable_docs_url|enable_latency_logging|workers"
    r"|grpc_port|enable_grpc|max_threads|log_config_file|access_log_format)\b"
)

# Images whose entry point is vLLM or KServe's huggingfaceserver, and a script that starts vLLM.
_IMAGE = re.compile(r"(^|/)(vllm-openai|vllm|huggingfaceserver)[^/]*$")
_SCRIPT = re.compile(r"(^|\s)(vllm serve|-m (vllm\.entrypoints\S+|huggingfaceserver))\s")

# KServe appends the words in this variable to those of vLLM.
_MORE_ARGUMENTS = "VLLM_ADDITIONAL_ARGS"

_IN_KUBERNETES = re.compile(r"\$(?:\$|\((\w+)\))")


def find_container(manifest: Manifest, path: DataPath) -> DataPath | None:
    """The container that runs vLLM or KServe's huggingfaceserver; None if there is none."""
    for index, container in items(manifest.find(*path)):
        parts = (mapping(container).get(key) for key in ("command", "args"))
        words = [str(word) for part in parts for _, word in items(part)]
        is_script = any(_SCRIPT.search(word) for word in words)
        is_vllm = shell.after_serve([Word(word, 0) for word in words]) is not None
        if is_script or is_vllm or _IMAGE.search(str(mapping(container).get("image"))):
            return (*path, index)
    return None


def add_container(
    manifest: Manifest, path: DataPath, name: str | None, uri: str | None, *, port: int = 8080, comment: str = ""
) -> CommentedMap:
    """Add the model that a container serves, and the server of the first one.

    `name` and `uri` are those of the manifest, which go over the words; `port` is that of a server without `--port`.
    """
    manifest.take(*path, "name")
    manifest.take(*path, "image")
    variables = values_of(manifest, path)
    words = [*_words(manifest, (*path, "command"), variables), *_words(manifest, (*path, "args"), variables)]
    words += _additional_words(manifest, path)
    after = shell.after_serve(words)
    line = parse(_renamed(words if after is None else after))
    line.faults = [
        (word, "is a flag of KServe's server that this server does not have" if _ITS_OWN.match(word.text) else reason)
        for word, reason in line.faults
    ]
    vllm.add_api_key(line, {each: Word("", manifest.line(*path, "env")) for each in variables})
    if uri is not None:
        # KServe puts the files at a path, which the words name.
        line.options.pop("model", None)
        line.positional = [word for word in line.positional if vllm.is_unknown(word)]
    served = line.options.get("served_model_name")
    is_named = served is not None and served.value != [name] and not str(served.value[0]).startswith("{{")
    model = vllm.add_model(manifest.draft, line, uri=uri, name=None if is_named else name)
    vllm.add_server(manifest.draft, line, default_port=port, comment=comment)
    return model


def values_of(manifest: Manifest, path: DataPath) -> Mapping[str, str]:
    """The variables of a container; references for secrets, and for those whose value is in another object."""
    values: dict[str, str] = {}
    for _, variable in items(manifest.find(*path, "env")):
        name, value = mapping(variable).get("name"), mapping(variable).get("value")
        if isinstance(name, str):
            values[name] = env(name) if value is None or is_secret_name(name) else _expanded(str(value), values)
    return values


def drop_variables(manifest: Manifest, path: DataPath) -> None:
    """List the variables of a container that are not read, without their values."""
    for index, variable in items(manifest.find(*path, "env")):
        where: DataPath = (*path, "env", index)
        if not manifest.is_taken(*where):
            manifest.drop(where, "set the variable for `appliance serve` too", str(mapping(variable).get("name")))


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """The text with the variables that Kubernetes replaces: `$(NAME)`, but not `$$(NAME)`.

    What it does not know stays in a script, where it is a command; elsewhere another object may set it.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] is None:
            return "$"
        return variables.get(found[1]) or (found[0] if _SCRIPT.search(text) else env(found[1]))

    return _IN_KUBERNETES.sub(value, text)


def _additional_words(manifest: Manifest, path: DataPath) -> Iterator[Word]:
    """Yield the words of vLLM's that KServe takes from a variable."""
    for index, variable in items(manifest.find(*path, "env")):
        where: DataPath = (*path, "env", index)
        if mapping(variable).get("name") == _MORE_ARGUMENTS and "value" in variable:
            manifest.take(*where)
            words = shell.commands(str(variable["value"]))
            yield from (Word(word.text, manifest.line(*where, "value")) for each in words for word in each)


def _words(manifest: Manifest, path: DataPath, variables: Mapping[str, str]) -> list[Word]:
    """The words of a container, each with its line; one text with blanks is a script of a shell."""
    words: list[Word] = []
    value = manifest.take(*path)
    for index, text in items([value] if isinstance(value, str) else value):
        line = manifest.line(*path, index)
        expanded = _expanded(str(text), variables)
        if _SCRIPT.search(expanded):
            # Its words are read where it is set.
            commands = list(shell.commands(expanded, {**variables, _MORE_ARGUMENTS: ""}))
            serving = [each for each in commands if shell.after_serve(each) is not None] or commands
            words += [Word(word.text, line + word.line) for word in serving[0]]
        else:
            words.append(Word(expanded, line))
    return words


def _renamed(words: list[Word]) -> list[Word]:
    """The words with vLLM's flags for those of KServe's huggingfaceserver."""
    renamed = []
    for word in words:
        flag, equals, value = word.text.partition("=")
        flag = _FLAGS.get(flag.replace("-", "_").replace("__", "--", 1) if flag.startswith("--") else flag, flag)
        if word.text in ("--backend=vllm", "--backend=auto"):
            continue
        renamed.append(Word(flag + equals + value, word.line))
    return renamed
