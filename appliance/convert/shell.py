"""Commands of vLLM in a shell script or in the words of a container."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from appliance.config.masking import is_secret_name
from appliance.convert.command_line import Word
from appliance.convert.draft import UNKNOWN, env

# A vLLM of before `vllm serve`, which images of it still start, and KServe's server with vLLM.
_MODULE = re.compile(r"vllm\.entrypoints\.(openai|launchers)\.api_server(\.\w+)?|huggingfaceserver")

# vLLM's own image, whose arguments are those of `vllm serve`: `docker run ... vllm/vllm-openai:TAG --model ...`.
_IMAGE = re.compile(r"(.*/)?vllm-openai[^/]*")
_ENGINES = frozenset({"docker", "podman", "nerdctl"})

# What may stand before a command or the variables that are set for it.
_PREFIXES = frozenset({"env", "exec", "export", "nohup", "sudo", "time"})

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)

_VARIABLE = r"\$(?:(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?::?-(?P<default>[^{}]*))?\})"
_IN_DOUBLE_QUOTES = re.compile(rf"\\.|(?P<command>\$\([^()]*\)|`[^`]*`)|{_VARIABLE}|.", re.DOTALL)
_OUTSIDE = re.compile(rf"'[^']*'|\\.|(?P<command>\$\([^()]*\)|`[^`]*`)|{_VARIABLE}|.", re.DOTALL)

# Reading on for the end of a quote takes time; a chat template is as long as this.
_LONGEST_QUOTE = 16 * 1024

_SEPARATORS = frozenset({";", "&", "&&", "|", "||", ";;", "(", ")"})


def commands(text: str, environment: Mapping[str, str] | None = None) -> Iterator[list[Word]]:
    """Yield the words of each command of a script; `\\` and open quotes continue a line.

    Variables of the environment, and those that the script sets, are replaced; the others become references.
    """
    variables = dict(environment or {})
    pending, first = "", 0
    words: list[Word] = []
    for number, line in enumerate(text.splitlines(), 1):
        is_open = bool(pending)
        pending, first = (f"{pending}\n{line}", first) if pending else (line, number)
        if is_open and not re.search("['\"]", line):
            continue
        try:
            found = _split(expanded(re.sub(r"\\+$", "", pending), variables))
        except ValueError:
            # A quote is open; one that never ends is no command.
            pending = pending if len(pending) <= _LONGEST_QUOTE else ""
            continue
        words += [Word(each, first) for each in found]
        is_continued, pending = pending.endswith("\\"), ""
        if not is_continued:
            for command in _separated(words):
                variables |= _set_by(command)
                yield command
            words = []
    yield from _separated(words)


def _split(text: str) -> list[str]:
    # A descriptor, as in `2>&1`, is no word.
    lexer = shlex.shlex(re.sub(r"(?<!\S)\d(?=[<>])", "", text), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def _separated(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Yield the words between separators, without redirections such as `2>&1`."""
    command: list[Word] = []
    skipped = False
    for word in words:
        if word.text in _SEPARATORS:
            if command:
                yield command
            command = []
        elif re.fullmatch(r"[<>&|]+", word.text):
            # The file after it belongs to it.
            skipped = True
            continue
        elif not skipped:
            command.append(word)
        skipped = False
    if command:
        yield command


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """The text of a shell with the values of its variables, or with references to those that have none here."""
    made, is_quoted, index = "", False, 0
    while part := (_IN_DOUBLE_QUOTES if is_quoted else _OUTSIDE).match(text, index):
        index = part.end()
        is_quoted ^= part[0] == '"'
        if part["command"]:
            made += UNKNOWN + (part[0] if is_quoted else shlex.quote(part[0]))
        elif name := part["name"] or part["braced"]:
            value = variables[name] if name in variables else env(name, default=part["default"])
            # Quotes in the value of a variable are plain text.
            made += re.sub(r"[\\\"]" if is_quoted else r"[\\\"']", r"\\\g<0>", value)
        else:
            made += part[0]
    return made


def _set_by(command: Sequence[Word]) -> Mapping[str, str]:
    """The variables of a command that does nothing but to set them."""
    words = [word.text for word in command if word.text != "export"]
    found = [_ASSIGNMENT.fullmatch(word) for word in words]
    # A reference keeps a secret out of the config.
    return {each[1]: each[2] for each in found if each and not is_secret_name(each[1])} if all(found) else {}


def after_serve(words: Sequence[Word]) -> list[Word] | None:
    """The words after `vllm serve`, or after the module or the image that is the same; None for another command."""
    for index, word in enumerate(words):
        following = words[index + 1].text if index + 1 < len(words) else ""
        if word.text.rpartition("/")[2] == "vllm" and following == "serve":
            return list(words[index + 2 :])
        is_run = _IMAGE.fullmatch(word.text) and any(each.text == "run" for each in words[:index])
        if is_run or _MODULE.fullmatch(word.text):
            return list(words[index + 1 :])
    return None


def environment(words: Sequence[Word]) -> Iterator[tuple[str, Word]]:
    """Yield the variables that a command has in its environment, by `NAME=VALUE`, `export`, or `docker run --env`."""
    for index, word in enumerate(words):
        name = _ASSIGNMENT.fullmatch(word.text)
        if name:
            yield name[1], word
        elif word.text not in _PREFIXES or (word.text == "export" and index):
            break
    options = container_options(words)
    for index, word in enumerate(options):
        flag, is_joined, value = word.text.partition("=")
        if flag in ("-e", "--env"):
            given = value if is_joined else options[index + 1].text if options[index + 1 :] else ""
            yield given.partition("=")[0], word


def container_options(words: Sequence[Word]) -> Sequence[Word]:
    """The options of `docker run` before vLLM's image."""
    texts = [word.text for word in words]
    image = next((index for index, text in enumerate(texts) if index and _IMAGE.fullmatch(text)), 0)
    runs = [index for index, text in enumerate(texts[:image]) if text == "run" and texts[index - 1] in _ENGINES]
    return words[runs[0] + 1 : image] if runs else ()
