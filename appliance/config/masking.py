"""What is secret in a config, by keys and as parts of addresses; masks it in the lines of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby, pairwise

from appliance.config.json_schema import property_names
from appliance.core.suggestions import nearest
from appliance.core.uri import redact, scheme_of, secret_spans

MASK = "***"

# Shorter texts are ordinary words and numbers.
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
_REST = re.compile(r"\s*(\S.*)")
_KEY = re.compile(r"""(?<![\w-])["']?(?P<name>[\w-]+)["']?\s*[:=]\s*(?!\$\{)""")
# A comma ends a value only where a key follows; a value that begins like a collection takes the rest of its line.
_FLOW_VALUE = re.compile(
    r"""\s*((?:"(?:\\.|[^"\\])*"?|'(?:''|[^'])*'?)[^,\]}]*|[{\[].*|[^\s"',\]}][^,\]}]*(?:,(?![^,\]}]*:)[^,\]}]*)*)"""
)

_NUMBER = re.compile(r"[-+]?\d[\d._]*\s*(?:[,}\]#]|$)")

# A key of the file with a name like this is secret.
_MIN_SIMILARITY = 0.8

# An unknown key may be a misspelt one: a third of its letters, and two of a short one, which is a rounded share.
_MIN_SIMILARITY_OF_UNKNOWN_KEYS = 0.7
_MAX_WRONG_LETTERS = 2.01

# Everything below these keys is secret; people write the key itself in the position of its SHA-256.
_SECTIONS = ("api_keys", "credentials", "headers", "sha256")

# Unknown keys like these may be secret. Many keys resemble `options`, whose values are secret too.
_PRIVATE_WORDS = (*_WORDS, *_SECTIONS, "secret", "token")
_ADDRESS = re.compile(r"(.*_)?(url|endpoint|sink)")
_LINE = re.compile(r"(?P<indent>\s*)(?P<dashes>(?:-\s+)*-?)(?P<key>[\"']?[\w-]+[\"']?\s*:(?=\s|$))?")
_FIELD = re.compile(r"[a-z_]+(256)?")


# Clients and servers send them with every request, and logs need their values.
_PUBLIC_HEADERS = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "user-agent"})

_REFERENCE = re.compile(r"\$\{[^}]*\}")


@lru_cache(4096)
def is_secret_name(key: str) -> bool:
    """Whether a key of this name holds a secret; also where it is misspelt."""
    word = key.lower().replace("-", "_")
    return _NAME.fullmatch(word) is not None or (
        not word.endswith("s") and bool(nearest(word, _WORDS, _MIN_SIMILARITY))
    )


@lru_cache(4096)
def is_private_name(key: str) -> bool:
    """Whether the value of a key of this name, or everything below it, is not shown: it is secret, or may be."""
    word = key.lower().replace("-", "_")
    return is_secret_name(key) or word in _SECTIONS or word == "options" or _may_be_private(key)


@lru_cache(4096)
def _may_be_private(key: str) -> bool:
    """Whether a key is unknown, and may be a misspelt one whose value is secret."""
    word = key.lower().replace("-", "_")
    if word in property_names():
        return False
    similarities = {other: SequenceMatcher(None, other, word).ratio() for other in _PRIVATE_WORDS}
    min_similarity = _MIN_SIMILARITY_OF_UNKNOWN_KEYS
    return any(each >= min(min_similarity, 1 - _MAX_WRONG_LETTERS / len(other)) for other, each in similarities.items())


def is_odd_address(key: str | int, value: object) -> bool:
    """Whether the value of this key is an address with signs that often belong to a misplaced secret."""
    is_address = isinstance(key, str) and isinstance(value, str) and _ADDRESS.fullmatch(key) is not None
    return is_address and any(mark in redact(str(value)) for mark in "@#")


def is_field(key: str) -> bool:
    """Whether a key looks like a key of ours, and not like a secret."""
    return _FIELD.fullmatch(key) is not None


def secrets_in(path: Sequence[str | int], text: str) -> Iterator[str]:
    """The secrets in a scalar: all of it by the name of its key, or parts of an address."""
    if is_secret(path):
        # A reference that was not resolved names a variable or a file.
        if not _REFERENCE.fullmatch(text):
            yield text
    else:
        yield from secrets_of_address(text)


def secrets_of_address(text: str) -> Iterator[str]:
    """The secrets in a text that is an address."""
    if scheme_of(text) is not None:
        for start, end in secret_spans(text):
            yield text[start:end]
            # Messages of other libraries name the password alone.
            yield text[start:end].partition(":")[2]


def is_secret(path: Sequence[str | int]) -> bool:
    """Whether a key above a value says that it is secret; what stands under `headers` mostly is."""
    match path:
        case ("server", "api_keys", int(), "value", *_) | ("storage", "credentials", *_, "key"):
            return True
        case (*above, _) if ("storage", "options") in pairwise(above):
            return True
        case (*above, str(name)) if "headers" in above:
            return name.lower() not in _PUBLIC_HEADERS
    return any(is_secret_name(part) for part in path if isinstance(part, str))


def is_below_private(lines: Sequence[str], number: int) -> bool:
    """Whether the line of this number, from 0, is below a key whose values are secret, by its indentation."""
    found = _matched(lines[number]) if number < len(lines) else None
    if found is None:
        return False
    level, is_item = len(found["indent"]), bool(found["dashes"])
    for line in reversed(lines[:number]):
        found = _matched(line)
        if found is None or (level == 0 and not is_item):
            continue
        column = found.end("dashes")
        if found["key"] and (column < level or (column == level and is_item and not found["dashes"])):
            if any(is_private_name(key["name"]) for key in _KEY.finditer(line) if _is_open(line, key)):
                return True
            level, is_item = len(found["indent"]), bool(found["dashes"])
        elif found["dashes"] and len(found["indent"]) < level:
            level, is_item = len(found["indent"]), True
    return False


def mask_below(line: str, column: int) -> tuple[str, int]:
    """A line below a secret key with everything but its own key masked, and its `column` then."""
    found = _LINE.match(line)
    if found is None:
        return MASK, 0
    name = (found["key"] or "").strip(" :\"'")
    kept = line[: found.end("key")] if found["key"] and is_field(name) else line[: found.end("dashes")]
    return f"{kept.rstrip() or kept} {MASK}", min(column, len(kept) + 1)


def mask(line: str, column: int, hidden: Iterable[str] = ()) -> tuple[str, int]:
    """The line with ``***`` for its secrets and for the texts `hidden`, and its `column`, from 0, then."""
    is_secret = bytearray(len(line))
    for start, end in (*_by_name(line), *secret_spans(line), *_by_text(line, hidden)):
        is_secret[start:end] = b"\1" * (end - start)
    shown, position, done = "", 0, 0
    for is_masked, group in groupby(is_secret):
        end = done + len(list(group))
        if done <= column:
            position = len(shown) + (0 if is_masked else min(column, end) - done)
        shown += MASK if is_masked else line[done:end]
        done = end
    return shown, position if column < len(line) else len(shown) + column - len(line)


def _by_name(line: str) -> Iterator[tuple[int, int]]:
    for key in _KEY.finditer(line):
        name, is_in_flow = key["name"], not {"{", "["}.isdisjoint(line[: key.start()])
        # Below a section, or in doubt, everything that follows may be secret.
        is_value = is_in_flow and (is_secret_name(name) or not is_private_name(name))
        found = (_FLOW_VALUE if is_value else _REST).match(line, key.end())
        if found is None:
            continue
        # In doubt, a number is no secret.
        is_shown = not is_secret_name(name) and _may_be_private(name) and _NUMBER.match(found[1]) is not None
        if (is_private_name(name) and not is_shown) or is_odd_address(name, found[1].partition(" #")[0]):
            yield found.span(1)


def _by_text(line: str, hidden: Iterable[str]) -> Iterator[tuple[int, int]]:
    # As plain text, in double quotes and in single quotes; a long text may be on several lines.
    parts = {part.strip() for text in hidden for part in (text, *text.splitlines())}
    for part in parts:
        if len(part) >= _SHORTEST:
            for written in {part, json.dumps(part)[1:-1], part.replace("'", "''")}:
                yield from (found.span() for found in re.finditer(re.escape(written), line))


def _matched(line: str) -> re.Match[str] | None:
    return None if not line.strip() or line.lstrip().startswith("#") else _LINE.match(line)


def _is_open(line: str, key: re.Match[str]) -> bool:
    """Whether the value of a key continues after its line."""
    rest = line[key.end() :].strip()
    is_flow = rest.count("{") + rest.count("[") > rest.count("}") + rest.count("]")
    is_quote = rest[:1] in {'"', "'"} and (len(rest) == 1 or rest[-1] != rest[0])
    return not rest or is_flow or is_quote or rest[0] in "|>&#!" or not {"{", "["} & set(line)
