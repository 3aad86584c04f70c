"""Secrets in the lines of a file: found by the names of their keys, as parts of addresses, and by their texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from appliance.nearest import nearest
from appliance.storage.uri import secret_spans

MASK = "***"

# Shorter texts are words and numbers that stand everywhere.
_SHORTEST = 4

_WORDS = (
    "access_key_id",
    "account_key",
    "api_key",
    "authorization",
    "client_secret",
    "connection_string",
    "cookie",
    "key_password",
    "passphrase",
    "password",
    "secret_access_key",
    "session_token",
)
_NAME = re.compile(
    r"(.*[_-])?(api_?key|(access|account|private|secret)_key(_id)?|passw(or)?d|passphrase|secret|authorization|cookie"
    r"|connection_string)|((.*[_-])?(access|api|auth|bearer|hf|hub|sas|session)_)?token",
)
_KEY = re.compile(r"""(?<![\w-])["']?(?P<name>[\w-]+)["']?\s*[:=]\s*(?!\$\{)""")
_QUOTED = r"""\s*("(?:\\.|[^"\\])*"?|'(?:''|[^'])*'?"""
_BLOCK_VALUE = re.compile(rf"{_QUOTED}|[^\s\"'].*)")
_FLOW_VALUE = re.compile(rf"{_QUOTED}|[^\s\"',\]}}][^,\]}}]*)")


def is_secret_name(key: str) -> bool:
    """Whether a key of this name holds a secret; also where it is misspelt."""
    word = key.lower().replace("-", "_")
    return _NAME.fullmatch(word) is not None or (not word.endswith("s") and bool(nearest(word, _WORDS)))


def mask(line: str, column: int, hidden: Iterable[str] = ()) -> tuple[str, int]:
    """The line with ``***`` for its secrets and for the texts `hidden`, and where its `column`, from 0, is then."""
    shown, place, done = "", column, 0
    for start, end in _merged([*_by_name(line), *secret_spans(line), *_by_text(line, hidden)]):
        shown += line[done:start] + MASK
        if column >= end:
            place += len(MASK) - (end - start)
        elif column > start:
            place -= column - start
        done = end
    return shown + line[done:], place


def _by_name(line: str) -> Iterator[tuple[int, int]]:
    for key in _KEY.finditer(line):
        value = _FLOW_VALUE if "{" in line[: key.start()] or "[" in line[: key.start()] else _BLOCK_VALUE
        if is_secret_name(key["name"]) and (found := value.match(line, key.end())):
            yield found.span(1)


def _by_text(line: str, hidden: Iterable[str]) -> Iterator[tuple[int, int]]:
    # As it is, in double quotes, in single quotes; the lines of a long text stand apart.
    parts = {part.strip() for text in hidden for part in (text, *text.splitlines())}
    for part in parts:
        if len(part) >= _SHORTEST:
            for written in {part, json.dumps(part)[1:-1], part.replace("'", "''")}:
                yield from (found.span() for found in re.finditer(re.escape(written), line))


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
