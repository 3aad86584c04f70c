"""How deep, how wide and how finely divided JSON is, told from its bytes in linear time before anything decodes it.

Decoders recurse, and differ in where they give up; this counts, in chunks, each with a few searches that run in C. So
a thread that does it never keeps the interpreter for longer than a chunk takes. Of what is no JSON it says anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from operator import add, countOf

# A few milliseconds at most, whatever is in it.
_CHUNK_BYTES = 64 * 1024

_BRACKETS = b"[{]}"
_NO_BRACKET = bytes(each for each in range(256) if each not in _BRACKETS)
_AS_BITS = bytes.maketrans(_BRACKETS, b"1100")

_OBJECT = re.compile(rb"\s*+\{")

# A level counts 2, so that a mark, written as one step up and one down, is the only odd height.
_AS_STEPS = bytes.maketrans(_BRACKETS, b"\x02\x02\xfe\xfe")
_MARK_STEPS, _AT_TOP = b"\x01\xff", 3


def _steps_of(packed: int) -> list[int]:
    """The steps that the bits of a byte stand for, up or down a level each."""
    return [1 if packed >> place & 1 else -1 for place in reversed(range(8))]


# Of eight brackets packed into a byte: how many levels they lead up, and how high they are in between.
_RISES = bytes(sum(_steps_of(each)) & 255 for each in range(256))
_PEAKS = bytes(max(accumulate(_steps_of(each), initial=0)) for each in range(256))


def is_deeper(body: bytes, most: int) -> bool:
    """Whether more than `most` objects and lists are within each other."""
    if body.count(b"[") + body.count(b"{") <= most:
        return False
    height = 0
    for text in _outside_strings(body):
        bits = text.translate(_AS_BITS, _NO_BRACKET)
        width = (len(bits) + 7) // 8
        packed = int(bits.ljust(width * 8, b"0") or b"0", 2).to_bytes(width, "big")
        heights = accumulate(memoryview(packed.translate(_RISES)).cast("b"), initial=height)
        if max(map(add, heights, packed.translate(_PEAKS)), default=0) > most:
            return True
        height += 2 * bits.count(b"1") - len(bits)
    return False


def has_more_members(body: bytes, most: int) -> bool:
    """Whether the outermost object has more than `most` members, or the outermost list more than `most` elements."""
    # Members are told by their colons, because an object that holds many numbers has few of them.
    mark, most_marks = (b":", most) if _OBJECT.match(body) else (b",", most - 1)
    if body.count(mark) <= most_marks:
        return False
    others = bytes(each for each in _NO_BRACKET if each not in mark)
    height = found = 0
    for text in _outside_strings(body):
        steps = memoryview(text.translate(_AS_STEPS, others).replace(mark, _MARK_STEPS)).cast("b")
        found += countOf(accumulate(steps, initial=height), _AT_TOP)
        if found > most_marks:
            return True
        height += sum(steps)
    return False


def has_more_containers(body: bytes, most: int) -> bool:
    """Whether there are more than `most` objects and lists, wherever they are."""
    if body.count(b"[") + body.count(b"{") <= most:
        return False
    found = 0
    for text in _outside_strings(body):
        found += text.count(b"[") + text.count(b"{")
        if found > most:
            return True
    return False


def _outside_strings(body: bytes) -> Iterator[bytes]:
    """What is not between quotes, chunk by chunk; a quote that is escaped is none."""
    start, is_inside = 0, False
    while start < len(body):
        chunk = body[start : start + _CHUNK_BYTES]
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:
            # A character and its escape stay together.
            chunk = body[start : start + _CHUNK_BYTES + 1]
        start += len(chunk)
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"").replace(b'\\"', b"")
        texts = chunk.split(b'"')
        yield b"".join(texts[is_inside::2])
        is_inside ^= len(texts) % 2 == 0
