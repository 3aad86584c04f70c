"""
How deep JSON is nested, told before anything decodes it.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from appliance.protocols.depth import is_deeper

MOST = 8


def depth(value: Any) -> int:
    """
    Objects and lists within each other, counted the slow way.
    """
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return 1 + max((depth(each) for each in inside), default=0)
    return 0


def made(random_: random.Random, left: int) -> Any:
    """
    Some JSON value no deeper than `left`, with texts that look like JSON.
    """
    kind = random_.choice("tnlo") if left else "t"
    if kind == "n":
        return None
    if kind == "t":
        return "".join(random_.choices('[]{}"\\,: n', k=random_.randrange(12)))
    count = random_.randrange(4)
    if kind == "l":
        return [made(random_, left - 1) for _ in range(count)]
    return {f'"{number}[{{\\': made(random_, left - 1) for number in range(count)}


@pytest.mark.parametrize("seed", range(300))
def test_it_says_what_counting_says(seed: int) -> None:
    """
    Whatever is in the texts, and however the brackets lie.
    """
    random_ = random.Random(seed)
    value = made(random_, 14)
    for _ in range(random_.randrange(MOST)):
        value = [value, value]

    for ensure_ascii in (True, False):
        assert is_deeper(json.dumps(value, ensure_ascii=ensure_ascii).encode(), MOST) == (depth(value) > MOST)


@pytest.mark.parametrize(
    ("body", "is_so"),
    [
        (b"[" * MOST + b"]" * MOST, False),
        (b"[" * (MOST + 1) + b"]" * (MOST + 1), True),
        (b'{"a":' * (MOST + 1) + b"1" + b"}" * (MOST + 1), True),
        (b"[" * 1_000_000, True),
        (b"[{}," * (MOST + 1), True),
        (b"[[1]," * 5 + b"[" * 6 + b"]" * 6, True),
        (b"[]," * 100_000, False),
        (b'"' + b"[" * 100 + b'"', False),
        (b'"\\\\"' + b"[" * 100, True),
        (b'"\\"' + b"[" * 100 + b'"', False),
        (b"", False),
        (b"\xff\x00", False),
    ],
)
def test_it_holds_where_the_body_is_no_json(body: bytes, is_so: bool) -> None:
    """
    What is never closed counts, and what is in a text does not.
    """
    assert is_deeper(body, MOST) is is_so
