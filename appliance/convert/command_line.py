"""The command line of `vllm serve`, read by the committed table of its options: vLLM need not be installed."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple, NoReturn

from appliance.config.json_schema import OPTIONS, engine_schema
from appliance.config.masking import is_secret_name
from appliance.config.raw_config import RawConfig
from appliance.convert.draft import UNKNOWN, is_reference
from appliance.core.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt])", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


# Values of `--task` for models that vLLM pools: of an older vLLM, and of KServe's huggingfaceserver.
_POOLING_TASKS = frozenset(
    {"classify", "embed", "embedding", "reward", "score"}
    | {"text_embedding", "sequence_classification", "token_classification"}
)


class Word(NamedTuple):
    """A word of a command line, and the line of its source that it stands on."""

    text: str
    line: int
    file: str = ""
    """The file of options that it is in; empty for the source itself."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option that was given, under its Python name."""

    name: str
    value: Any  # Any: what the option's type makes of the text
    flag: Word
    """The flag with its values, as they were written."""


@dataclass(slots=True)
class CommandLine:
    """What the words after `vllm serve` say."""

    options: dict[str, Option] = field(default_factory=dict)
    """By their names; of an option that was given twice the last one."""
    positional: list[Word] = field(default_factory=list)
    faults: list[tuple[Word, str]] = field(default_factory=list)
    """Words that are no option of vLLM's, or have a wrong value, with the reason."""


class _UsageError(Exception):
    """A word is no option, or has a wrong value."""


class _Parser(argparse.ArgumentParser):
    @property
    def flags(self) -> Collection[str]:
        """All flags of vLLM's options."""
        return self._option_string_actions

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process."""
        raise _UsageError(message)


def parse(words: Sequence[Word], read_options: Callable[[str], RawConfig] | None = None) -> CommandLine:
    """Read the words after `vllm serve`, one option at a time, so that each fault has its line.

    `read_options` reads the file that `--config` names; None leaves it unread.
    """
    made = CommandLine()
    words = _with_file(words, made, read_options) if read_options else words
    dotted: dict[str, tuple[Word, dict[str, Any]]] = {}
    for group in _groups(words):
        first = group[0].text
        flag, is_joined, value = first.partition("=")
        is_secret = is_secret_name(flag.lstrip("-"))
        shown = group[0]._replace(text=flag if is_secret else " ".join(shlex.quote(word.text) for word in group))
        if any(UNKNOWN in word.text for word in group):
            made.faults.append((shown, "what the shell puts here is not known"))
        elif first.startswith("-") and "." in flag:
            _, rest = dotted.setdefault(flag.partition(".")[0], (shown, {}))
            _merge(rest, flag.partition(".")[2], value if is_joined else "".join(word.text for word in group[1:2]))
            made.positional += group[1 if is_joined else 2 :]
        else:
            _read([word.text for word in group], shown, made, group)
    # As vLLM does: the parts of a value in JSON, such as `--speculative-config.method`, replace a whole one.
    for flag, (shown, parts) in dotted.items():
        _read([flag, json.dumps(parts)], shown, made, [])
    return made


def _with_file(words: Sequence[Word], made: CommandLine, read_options: Callable[[str], RawConfig]) -> Sequence[Word]:
    """The words with those of the file that `--config` names after the model, so that the command line overrides it."""
    for index, word in enumerate(words):
        flag, is_joined, path = word.text.partition("=")
        if flag != "--config" or not (is_joined or words[index + 1 :]):
            continue
        path = path if is_joined else words[index + 1].text
        rest = [*words[:index], *words[index + (1 if is_joined else 2) :]]
        try:
            model = list(takewhile(lambda word: not word.text.startswith("-"), rest))
            return [*model, *option_words(read_options(path), path), *rest[len(model) :]]
        except ConfigError as error:
            made.faults.append((word, str(error.problems[0]).partition("\n")[0]))
            return rest
    return words


def option_words(raw: RawConfig, file: str = "") -> Iterator[Word]:
    """Yield the words that vLLM makes of a file of options: `max-model-len: 8192` is `--max-model-len 8192`."""
    for key, value in raw.data.items():
        line = (raw.key_locations.get((key,)) or raw.location((key,))).line
        flag = f"--{key}"
        if isinstance(value, bool):
            texts = [flag] if value else [f"--no-{key}"] if f"--no-{key}" in _parser().flags else []
        elif isinstance(value, list):
            texts = [flag, *map(str, value)] if value else []
        else:
            texts = [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
        yield from (Word(text, line, file) for text in texts)


def _read(texts: Sequence[str], shown: Word, made: CommandLine, group: Sequence[Word]) -> None:
    try:
        found, rest = _parser().parse_known_args([_normalized(texts[0]), *texts[1:]])
    except _UsageError as error:
        made.faults.append((shown, f"vLLM refuses it: {error}"))
        return
    if rest and rest[0].startswith("-"):
        task = re.fullmatch(r"--task[= ](\w+)", " ".join(texts[:2]))
        if task and task[1] in _POOLING_TASKS:
            made.options["runner"] = Option("runner", "pooling", shown)
            made.positional += group[1 if "=" in texts[0] else 2 :]
            return
        made.faults.append((shown, "is no option of this version of vLLM"))
        # An option has one value as a rule, and the model may stand after it.
        made.positional += group[2:] if len(group) == 3 else []
        return
    # What the option does not take is the model.
    made.positional += group[len(group) - len(rest) :] if rest else []
    for name, value in vars(found).items():
        made.options.pop(name, None)
        made.options[name] = Option(name, value, shown)


def _groups(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Yield each flag with the words up to the next one."""
    group: list[Word] = []
    for word in words:
        is_flag = word.text.startswith("-") and not re.match(r"-\.?\d", word.text)
        if is_flag and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _normalized(flag: str) -> str:
    """The flag as the table has it: `--max_model_len` is `--max-model-len`, and `-O3` is `--optimization-level=3`."""
    if level := re.fullmatch(r"-O=?([0-3]?)", flag):
        return f"--optimization-level={level[1]}" if level[1] else "--optimization-level"
    name, equals, value = flag.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def _merge(target: dict[str, Any], keys: str, text: str) -> None:
    """Put one part of a JSON value in its place: `a.b` for mappings, `a.b+` for entries of a list."""
    value: Any = text.split(",") if keys.endswith("+") else _json_or_text(text)
    *above, key = keys.removesuffix("+").split(".")
    for each in above:
        if not isinstance(target.get(each), dict):
            target[each] = {}
        target = target[each]
    target[key] = target[key] + value if isinstance(value, list) and isinstance(target.get(key), list) else value


def _json_or_text(text: str) -> Any:
    for read in (json.loads, _size):
        try:
            return read(text)
        except ValueError:
            continue
    return text


@cache
def _parser() -> _Parser:
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for name, option in engine_schema()[OPTIONS].items():
        flags = [f"--{name.replace('_', '-')}", *option.get("aliases", ())]
        if option["type"] == "boolean":
            parser.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction)
        else:
            read = _reader(option["type"], is_nullable=option.get("nullable", False))
            action = parser.add_argument(*flags, dest=name, type=read, nargs=option.get("nargs"))
            # The value of `--hf-token` without one: the token of the login.
            action.const = True if action.nargs == "?" else None
    return parser


def _reader(type_: str, *, is_nullable: bool) -> Callable[[str], Any]:
    """What makes the value of a text; a reference stands for a value of any type."""

    def read(text: str) -> Any:
        if is_nullable and text in ("", "None"):
            return None
        try:
            return text if is_reference(text) else _TYPES[type_](text)
        except (OverflowError, RecursionError) as error:
            raise ValueError from error

    # argparse names it where the text is wrong.
    read.__name__ = type_
    return read


def _size(text: str) -> int:
    """A number with a decimal suffix (`8k` is 8000) or a binary one (`8K` is 8192); `auto` is vLLM's -1."""
    if text.lower() == "auto":
        return -1
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return int(text)
    number, suffix = match.groups()
    return int(float(number) * (1000 if suffix.islower() else 1024) ** _POWERS[suffix.lower()])


def _list(text: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in map(str.strip, text.split(","))]


def _json_or_string(text: str) -> Any:
    return json.loads(text) if text.lstrip().startswith("{") else text


_TYPES: Mapping[str, Callable[[str], Any]] = {
    "string": str,
    "integer": int,
    "number": float,
    "size": _size,
    "array": _list,
    "json": json.loads,
    "json or string": _json_or_string,
}
