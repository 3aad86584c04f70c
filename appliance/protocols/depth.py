"""
How deep JSON is nested, told from its bytes.
"""

from __future__ import annotations

_ALL_OPEN = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(each for each in range(256) if each not in b"[]{}")


def is_deeper(body: bytes, most: int) -> bool:
    """
    Whether more than so many objects and lists are within each other; of what is no JSON it says anything.

    Decoders of JSON recurse, and differ in where they give up. This does not: it takes pairs of brackets away from the
    inside to the outside, a level at a time, each with a search that runs in C.
    """
    if body.count(b"[") + body.count(b"{") <= most:
        return False
    brackets = _outside_texts(body).translate(_ALL_OPEN, _NO_BRACKET)
    too_many = b"[" * (most + 1)
    for _ in range(most):
        # At each level, for what is opened and never closed.
        if too_many in brackets:
            return True
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            return False
        brackets = fewer
    return too_many in brackets or b"[]" in brackets


def _outside_texts(body: bytes) -> bytes:
    """
    What is not between quotes; a quote that is escaped is none.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(body.split(b'"')[::2])
