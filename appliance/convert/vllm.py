"""Options of `vllm serve` as a model of the config, and as parts of `server`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from ruamel.yaml.comments import CommentedMap

from appliance.config.engine import KEYS, OWNED, ServingConfig
from appliance.config.json_schema import engine_schema, types_of
from appliance.convert.command_line import CommandLine, Option, Word
from appliance.convert.draft import Draft, env, is_reference, to_name

DEFAULT_PORT = 8000
"""The port of vLLM's server, unless `--port` says another one."""

_DTYPES = {"half": "float16", "float": "float32"}
_EXECUTORS = {"mp": "multiprocess", "ray": "ray"}
_LEVELS = {"trace": "debug", "critical": "error"}

# Options of vLLM's front end that are keys of a model.
_MODEL_KEYS = ("chat_template", "tool_call_parser", "reasoning_parser")

# Options of vLLM's front end that are keys of the whole config.
_SERVER_KEYS: Mapping[str, str] = {
    "port": "server.port",
    "host": "server.host",
    "api_server_count": "server.workers",
    "ssl_certfile": "server.tls.certificate",
    "ssl_keyfile": "server.tls.key",
    "allowed_origins": "server.cors.origins",
    "uvicorn_log_level": "logging.level",
}

_OF_SERVER = frozenset({*_SERVER_KEYS, "api_key", "disable_uvicorn_access_log"})

ALWAYS = frozenset({"enable_ssl_refresh"})
"""Options that need no key: what they ask for is always so."""

_SECOND_MODEL = "is a second model; vLLM serves one"
_NO_KEY = "is an option of vLLM's server that this server does not have"
_REASONS: Mapping[str, str] = {
    "config": "the file is in the container; convert it too, and merge both",
    "grpc_port": "vLLM's own gRPC; server.grpc_port serves the Open Inference Protocol",
    "headless": "layout.nodes.rank says which machine has no front end",
    "root_path": "KServe's prefixes are served if `metadata` names the service; other prefixes belong to the gateway",
    "ssl_ca_certs": "server.tls.client_ca requires certificates of all clients; set it if --ssl-cert-reqs is 2",
    "enable_lora": "adapters of the config turn it on; they are not added while serving",
}


class NoModelError(Exception):
    """The source of a model names no model."""


def add_model(draft: Draft, line: CommandLine, *, uri: str | None = None, name: str | None = None) -> CommentedMap:
    """Add the model of a command line; `uri` and `name` are those of a manifest, which go over the options."""
    for word, reason in line.faults:
        draft.at(word.line, word.file).drop(word.text, reason)
    options = dict(line.options)
    _drop_words(draft, line.positional if uri else line.positional[1:])
    uri = to_uri(uri, _taken(options, "revision")) if uri else _uri(draft, line, options)
    served = _taken(options, "served_model_name") or [_model(line) or uri]
    names = [name] if name else [str(each) for each in served]
    is_pooling = _is_pooling(draft, options)
    if served_flag := line.options.get("served_model_name"):
        draft.at(served_flag.flag.line, served_flag.flag.file)
    model = draft.add_model(names[0], "encoder" if is_pooling else "generative")
    aliases = [each for each in names[1:] if each == to_name(each) != to_name(names[0])]
    if aliases:
        draft.put("aliases", aliases, into=model)
    for each in [each for each in names[1:] if each != to_name(each)]:
        draft.drop(each, "is no name here: letters, digits and . _ / @ : + -, of which the first is no sign")
    draft.put("storage.uri", uri, into=model)
    for option in options.values():
        _put(draft.at(option.flag.line, option.flag.file), model, option, options)
    return model


def add_api_key(line: CommandLine, environment: Mapping[str, Word]) -> None:
    """Add the key that vLLM takes from its environment where no option gives one."""
    if "VLLM_API_KEY" in environment:
        line.options.setdefault(
            "api_key",
            Option("api_key", [env("VLLM_API_KEY")], environment["VLLM_API_KEY"]._replace(text="VLLM_API_KEY")),
        )


def add_server(draft: Draft, line: CommandLine, *, default_port: int = DEFAULT_PORT, comment: str = "") -> None:
    """Add what the options of the first model say of the server, and list what those of another one say."""
    given = [option for name, option in line.options.items() if name in _OF_SERVER]
    if "server" in draft.data:
        for option in given:
            draft.at(option.flag.line, option.flag.file).drop(_flag(option), "one server has all models of the config")
        return
    if "port" not in line.options:
        comment = comment or ("vLLM's default port" if default_port == DEFAULT_PORT else "")
        draft.put("server.port", default_port, comment)
    for option in given:
        _put_of_server(draft.at(option.flag.line, option.flag.file), option)
    if "ssl_certfile" in line.options and "ssl_keyfile" not in line.options:
        draft.put("server.tls.key", line.options["ssl_certfile"].value)


def _put_of_server(draft: Draft, option: Option) -> None:
    name, value = option.name, option.value
    if name == "api_key":
        keys = [_secret(draft, option, key, f"API_KEY_{number}") for number, key in enumerate(value or [], 1)]
        draft.put("server.api_keys", [{"name": f"key-{number}", "value": key} for number, key in enumerate(keys, 1)])
    elif name == "disable_uvicorn_access_log":
        if value:
            draft.put("logging.access.sample", 0)
    elif value is not None:
        draft.put(_SERVER_KEYS[name], _LEVELS.get(value, value) if name == "uvicorn_log_level" else value)


def _secret(draft: Draft, option: Option, text: str, variable: str) -> str:
    """A reference to a variable for a secret, which the config does not spell out; `$NAME` stays this variable."""
    if in_shell := re.fullmatch(r"\$\{?(\w+)\}?", text):
        return env(in_shell[1])
    if is_reference(text):
        return text
    draft.drop(_flag(option), f"is not spelled out; set the variable {variable} for `appliance serve`")
    return env(variable)


def _flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


def _taken(options: dict[str, Option], name: str) -> Any:
    """Remove an option, and return its value; None if it was not given."""
    option = options.pop(name, None)
    return None if option is None else option.value


def _is_pooling(draft: Draft, options: dict[str, Option]) -> bool:
    option = options.pop("runner", None)
    if option and option.value not in ("auto", "generate", "pooling"):
        draft.at(option.flag.line, option.flag.file).drop(option.flag.text, "must be auto, generate or pooling")
    return option is not None and option.value == "pooling"


def _model(line: CommandLine) -> str | None:
    given = line.options.get("model")
    return line.positional[0].text if line.positional else str(given.value) if given else None


def is_unknown(word: Word) -> bool:
    """Whether a word stands for others that are not here, such as `$@`."""
    return is_reference(word.text) or word.text.startswith("$")


def _drop_words(draft: Draft, words: Sequence[Word]) -> None:
    for word in words:
        reason = "is not known here; write what stands for it" if is_unknown(word) else _SECOND_MODEL
        draft.at(word.line, word.file).drop(word.text, reason)


def _uri(draft: Draft, line: CommandLine, options: dict[str, Option]) -> str:
    """The URI of the model: a name on the hub, with its revision, or what vLLM reads itself."""
    model, revision, other = _model(line), _taken(options, "revision"), options.pop("model", None)
    # The command line goes over a file of options.
    if other and line.positional and not other.flag.file:
        _drop_words(draft, [other.flag])
    if model is None:
        raise NoModelError
    if "tokenizer" in options and options["tokenizer"].value == model:
        del options["tokenizer"]
    return to_uri(model, revision)


def to_uri(model: str, revision: str | None = None) -> str:
    """The URI of what vLLM calls a model: a URI, a path, or a name on the hub."""
    uri = model if "://" in model or model.startswith(("/", ".", "~")) else f"hf://{model}"
    return f"{uri}@{revision}" if revision and uri.startswith("hf://") and "@" not in uri else uri


def _put(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:
    """Put one option into the model, or list it."""
    name, value = option.name, option.value
    if name in _SPECIAL:
        _SPECIAL[name](draft, model, option, options)
    elif name in _MODEL_KEYS:
        if value:
            draft.put(name, value, into=model)
    elif name in KEYS:
        if value is not None:
            draft.put(KEYS[name], value, into=model)
    elif name in ServingConfig.model_fields:
        if value is not None:
            draft.put(("engine", "serving", name), value, into=model)
    elif name in engine_schema()["properties"]:
        _put_argument(draft, model, option)
    elif name not in _OF_SERVER | ALWAYS:
        draft.drop(option.flag.text, _REASONS.get(name) or OWNED.get(name) or _NO_KEY)


def _put_argument(draft: Draft, model: CommentedMap, option: Option) -> None:
    """Put an engine argument below `engine.args`, if the schema allows its value."""
    schema = engine_schema()["properties"][option.name]
    value = _fitted(option.value, schema)
    faults = [] if is_reference(value) else list(Draft202012Validator(schema).iter_errors(value))
    if faults:
        draft.drop(option.flag.text, f"{faults[0].message}; see engine.args.{option.name}")
    else:
        draft.put(("engine", "args", option.name), value, into=model)


def _fitted(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value as the schema has it: vLLM's own parser ignores case, and reads some numbers as text."""
    if is_reference(value):
        return value
    if isinstance(value, str) and "string" not in types_of(schema) and "integer" in types_of(schema):
        return int(value) if value.isdecimal() else value
    choices = [each for each in schema.get("enum", ()) if isinstance(each, str) and isinstance(value, str)]
    return next((each for each in choices if _plain(each) == _plain(value)), value) if value not in choices else value


def _plain(text: str) -> str:
    return text.lower().replace("-", "_")


def _put_translated(key: str, words: Mapping[str, str]) -> Callable[..., None]:
    def put(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:  # noqa: ARG001
        draft.put(key, words.get(option.value, option.value), into=model)

    return put


def _put_executor(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:  # noqa: ARG001
    if option.value in _EXECUTORS:
        draft.put("layout.executor", _EXECUTORS[option.value], into=model)
    elif option.value is not None:
        draft.drop(option.flag.text, "layout.executor starts ranks with processes or with Ray")


def _put_max_model_len(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:  # noqa: ARG001
    if option.value == -1:
        reason = "no length is chosen by the free memory; `appliance plan` prints what fits, for engine.max_model_len"
        draft.drop(option.flag.text, reason)
    else:
        draft.put("engine.max_model_len", option.value, into=model)


def _put_port(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:
    """Two ports of vLLM's between machines are the one after `layout.nodes.port`."""
    if "nnodes" in options and option.name == "master_port" and isinstance(option.value, int):
        draft.put("layout.nodes.port", option.value - 1, into=model)
    else:
        draft.drop(option.flag.text, OWNED[option.name])


def _put_adapters(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:  # noqa: ARG001
    adapters = []
    for text in option.value:
        name, equals, path = str(text).partition("=")
        try:
            given = {"name": name, "path": path} if equals and not text.startswith("{") else json.loads(text)
            adapters.append({"name": given["name"], "storage": {"uri": to_uri(str(given["path"]))}})
        except (ValueError, KeyError, TypeError):
            draft.drop(f"{_flag(option)} {text}", "must be NAME=PATH, or JSON with name and path")
    if adapters:
        draft.put("adapters", adapters, into=model)


def _put_token(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:  # noqa: ARG001
    if isinstance(option.value, str):
        token = _secret(draft, option, option.value, "HF_TOKEN")
        draft.put("storage.credentials.hf", [{"token": token}])


def _skip_if_parser(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:  # noqa: ARG001
    """A parser of tool calls turns on what the option turns on; without a parser vLLM does not start."""
    if option.value and "tool_call_parser" not in options:
        draft.drop(option.flag.text, "needs tool_call_parser")


def _skip_if_adapters(draft: Draft, model: CommentedMap, option: Option, options: Mapping[str, Option]) -> None:  # noqa: ARG001
    if option.value and "lora_modules" not in options:
        draft.drop(option.flag.text, _REASONS["enable_lora"])


_SPECIAL: Mapping[str, Callable[[Draft, CommentedMap, Option, Mapping[str, Option]], None]] = {
    "dtype": _put_translated("engine.dtype", _DTYPES),
    "distributed_executor_backend": _put_executor,
    "max_model_len": _put_max_model_len,
    "master_port": _put_port,
    "data_parallel_rpc_port": _put_port,
    "lora_modules": _put_adapters,
    "hf_token": _put_token,
    "enable_auto_tool_choice": _skip_if_parser,
    "enable_lora": _skip_if_adapters,
}
