"""Commands of vLLM in a shell script or in the words of a container."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from appliance.convert.command_line import Word

# A vLLM of before `vllm serve`, which images of it still start.
_MODULE = re.compile(r"vllm\.entrypoints\.(openai|launchers)\.api_server(\.\w+)?")

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


def commands(text: str) -> Iterator[list[Word]]:
    """Yield the words of each command of a script; `\\` and open quotes continue a line."""
    words: list[Word] = []
    pending, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        pending, first = (f"{pending}\n{line}", first) if pending else (line, number)
        try:
            found = shlex.split(re.sub(r"\\$", "", pending), comments=True)
        except ValueError:
            # A quote is open.
            continue
        words += [Word(each, first) for each in found]
        is_continued, pending = pending.endswith("\\"), ""
        if words and not is_continued:
            yield words
            words = []
    if words:
        yield words


def after_serve(words: Sequence[Word]) -> list[Word] | None:
    """The words after `vllm serve`, or after the module that is the same; None if it is another command."""
    for index, word in enumerate(words):
        following = words[index + 1].text if index + 1 < len(words) else ""
        if word.text.rpartition("/")[2] == "vllm" and following == "serve":
            return list(words[index + 2 :])
        if _MODULE.fullmatch(word.text):
            return list(words[index + 1 :])
        # `docker run ... vllm/vllm-openai:TAG --model ...`
        if re.search(r"vllm/vllm-openai[^/]*$", word.text):
            return list(words[index + 1 :])
    return None


def assignments(words: Sequence[Word]) -> list[Word]:
    """The variables that are set for one command."""
    found = []
    for word in words:
        if word.text in ("env", "exec", "export"):
            continue
        if not _ASSIGNMENT.fullmatch(word.text):
            break
        found.append(word)
    return found
