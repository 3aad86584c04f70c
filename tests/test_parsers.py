"""Whatever strangers send, a parser takes it or says that it is wrong, in time that grows with its size alone."""

from __future__ import annotations

import contextlib
import time
from itertools import count

import pytest
from bench.parsing import measured
from file_parsers import file_parsers
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from parsers import Parser, parsers

PARSERS = (*parsers(), *file_parsers())

# Of a default run all parsers together have three seconds, and each a hundred bodies; of `just faults` each has ten
# minutes.
SECONDS = 3.0 / len(PARSERS)
FAULT_SECONDS = 600.0

# What turns one meaning into another, in any of the formats.
TOKENS = [b'"', b"\\", b"[", b"{", b"]", b"}", b",", b":", b"\r\n", b"--xYz", b"--", b"\x00", b"\xff", b"\xef\xbb\xbf"]
TOKENS += [b"null", b"NaN", b"-1", b"1e999", b"99999999999999999999", b'"model"', b"\\ud800", b"\n\n", b"data:"]


@st.composite
def mutated(draw: st.DrawFn, parser: Parser) -> bytes:
    """A seed with a few cuts, copies and insertions."""
    body = draw(st.sampled_from(parser.seeds) | st.binary(max_size=64))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 40)))
        new = draw(st.sampled_from(TOKENS) | st.binary(max_size=4) | st.just(body[start:end] * 2))
        body = body[:start] + new * draw(st.sampled_from([1, 1, 1, 2, 150])) + body[end:]
    return body


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
@pytest.mark.parametrize(
    "seconds", [SECONDS, pytest.param(FAULT_SECONDS, marks=[pytest.mark.faults, pytest.mark.timeout(900)])]
)
def test_parser_raises_only_its_declared_errors(parser: Parser, seconds: float) -> None:
    """Bodies of the official clients, and good ones of every route, with something wrong."""
    end = time.monotonic() + seconds

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated(parser))
    def feed(body: bytes) -> None:
        with contextlib.suppress(*parser.errors):
            parser.parse(body)

    for number in count():
        seed(number)(feed)()
        if time.monotonic() >= end:
            break


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_valid_body_is_parsed(parser: Parser) -> None:
    """A row whose seeds are all refused would test nothing."""
    assert any(_is_taken(parser, body) for body in parser.seeds)


def _is_taken(parser: Parser, body: bytes) -> bool:
    try:
        parser.parse(body)
    except parser.errors:
        return False
    return True


@pytest.mark.parametrize(
    ("parser", "shape"),
    [(parser, shape) for parser in PARSERS for shape in parser.shapes],
    ids=lambda each: getattr(each, "name", each),
)
def test_parsing_time_is_linear_in_size(parser: Parser, shape: str) -> None:
    """
    Sixteen times the bytes in not much more than sixteen times the time of this thread, where a square would be 256.
    """
    small, large = (measured(parser, parser.shapes[shape], size) for size in (32 * 1024, 512 * 1024))

    # What takes so little is not measured by this clock.
    assert large < 0.1 or large < 80 * small
