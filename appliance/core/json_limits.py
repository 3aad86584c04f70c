"""Limits of JSON that are checked before it is decoded: nesting depth, members, number of objects and lists.

Decoders recurse, and each has its own limit. These functions take linear time: they count in chunks, with a few calls
per chunk that run in C, so that a thread holds the GIL for one chunk at a time. If the bytes are not JSON, the result
is meaningless.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from operator import countOf

# Takes a few milliseconds at most, whatever the content.
_CHUNK_BYTES = 64 * 1024

_OBJECT = re.compile(rb"\s*+\{")

# A level counts 2, and a mark (colon or comma) is a step up and a step down, so that only marks have odd heights.
_BRACKETS = b"[{]}"
_AS_STEPS = bytes.maketrans(_BRACKETS, b"\x02\x02\xfe\xfe")
_LEVEL, _MARK_STEPS, _AT_TOP = 2, b"\x01\xff", 3


def is_deeper(body: bytes, limit: int) -> bool:
    """Return whether objects and lists are nested more than `limit` levels deep."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    height = 0
    for steps in _steps(body):
        if max(accumulate(steps, initial=height)) > limit * _LEVEL:
            return True
        height += sum(steps)
    return False


def has_more_members(body: bytes, limit: int) -> bool:
    """Return whether the outermost object has more than `limit` members, or the outermost list as many elements."""
    # Members are counted by colons, because the lists in an object have commas too.
    mark, max_marks = (b":", limit) if _OBJECT.match(body) else (b",", limit - 1)
    if body.count(mark) <= max_marks:
        return False
    height = found = 0
    for steps in _steps(body, mark):
        found += countOf(accumulate(steps, initial=height), _AT_TOP)
        if found > max_marks:
            return True
        height += sum(steps)
    return False


def has_more_containers(body: bytes, limit: int) -> bool:
    """Return whether there are more than `limit` objects and lists, at any depth."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    found = 0
    for text in _outside_strings(body):
        found += text.count(b"[") + text.count(b"{")
        if found > limit:
            return True
    return False


def _steps(body: bytes, mark: bytes = b"") -> Iterator[memoryview]:
    others = bytes(each for each in range(256) if each not in _BRACKETS + mark)
    for text in _outside_strings(body):
        steps = text.translate(_AS_STEPS, others)
        yield memoryview(steps.replace(mark, _MARK_STEPS) if mark else steps).cast("b")


def _outside_strings(body: bytes) -> Iterator[bytes]:
    start, is_inside = 0, False
    while start < len(body):
        chunk = body[start : start + _CHUNK_BYTES]
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:
            # A backslash and the character that it escapes must be in one chunk.
            chunk = body[start : start + _CHUNK_BYTES + 1]
        start += len(chunk)
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"").replace(b'\\"', b"")
        texts = chunk.split(b'"')
        yield b"".join(texts[is_inside::2])
        is_inside ^= len(texts) % 2 == 0
