"""Limits of JSON that are checked before it is decoded: nesting depth, members, number of objects and lists.

Decoders recurse, and each has its own limit. These functions take linear time: they count in chunks, with a few calls
per chunk that run in C, so that a thread holds the GIL for one chunk at a time. If the bytes are not JSON, the result
is meaningless.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from operator import add, countOf

# Takes a few milliseconds at most, whatever the content.
_CHUNK_BYTES = 64 * 1024

_BRACKETS = b"[{]}"
_NOT_BRACKETS = bytes(each for each in range(256) if each not in _BRACKETS)
_AS_BITS = bytes.maketrans(_BRACKETS, b"1100")

_OBJECT = re.compile(rb"\s*+\{")

# A level counts 2, and a mark (colon or comma) is a step up and a step down, so that only marks have odd heights.
_AS_STEPS = bytes.maketrans(_BRACKETS, b"\x02\x02\xfe\xfe")
_MARK_STEPS, _AT_TOP = b"\x01\xff", 3


def _steps_of(packed: int) -> list[int]:
    """Return the steps that the bits of a byte stand for, each up or down one level."""
    return [1 if packed >> bit & 1 else -1 for bit in reversed(range(8))]


# For eight brackets packed into a byte: the difference of levels, and the highest level in between.
_RISES = bytes(sum(_steps_of(each)) & 255 for each in range(256))
_PEAKS = bytes(max(accumulate(_steps_of(each), initial=0)) for each in range(256))


def is_deeper(body: bytes, limit: int) -> bool:
    """Return whether objects and lists are nested more than `limit` levels deep."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    height = 0
    for text in _outside_strings(body):
        bits = text.translate(_AS_BITS, _NOT_BRACKETS)
        width = (len(bits) + 7) // 8
        packed = int(bits.ljust(width * 8, b"0") or b"0", 2).to_bytes(width, "big")
        heights = accumulate(memoryview(packed.translate(_RISES)).cast("b"), initial=height)
        if max(map(add, heights, packed.translate(_PEAKS)), default=0) > limit:
            return True
        height += 2 * bits.count(b"1") - len(bits)
    return False


def has_more_members(body: bytes, limit: int) -> bool:
    """Return whether the outermost object has more than `limit` members, or the outermost list as many elements."""
    # Members are counted by colons, because the lists in an object have commas too.
    mark, max_marks = (b":", limit) if _OBJECT.match(body) else (b",", limit - 1)
    if body.count(mark) <= max_marks:
        return False
    others = bytes(each for each in _NOT_BRACKETS if each not in mark)
    height = found = 0
    for text in _outside_strings(body):
        steps = memoryview(text.translate(_AS_STEPS, others).replace(mark, _MARK_STEPS)).cast("b")
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


def _outside_strings(body: bytes) -> Iterator[bytes]:
    """Yield what is outside of strings, chunk by chunk."""
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
