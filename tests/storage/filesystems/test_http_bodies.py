"""The bodies of answers: exact, cut to size, and given up."""

from __future__ import annotations

from io import BytesIO

import pytest
from urllib3 import HTTPResponse

from appliance.core.errors import StorageUnavailableError
from appliance.storage.filesystems.base import Body
from appliance.storage.filesystems.http_client import BodyWindow, ExactBody, ResponseBody


def body(data: bytes) -> ResponseBody:
    """An answer with these bytes."""
    return ResponseBody("fake", HTTPResponse(BytesIO(data), preload_content=False))


def rest(of: Body, block: int = 3) -> bytes:
    """All that comes, in small blocks."""
    return b"".join(iter(lambda: of.read(block), b""))


def test_an_exact_body_has_all_its_bytes() -> None:
    """No more and no less."""
    assert rest(ExactBody("fake", body(b"0123456789"), 10)) == b"0123456789"


@pytest.mark.parametrize(("data", "words"), [(b"01234567", "ends 2 bytes early"), (b"0123456789x", "is longer")])
def test_a_body_of_another_length_is_told(data: bytes, words: str) -> None:
    """Before anyone takes it for the whole."""
    with pytest.raises(StorageUnavailableError, match=words):
        rest(ExactBody("fake", body(data), 10))


@pytest.mark.parametrize(("start", "end"), [(0, 4), (4, 7), (7, 10), (0, 10)])
def test_a_window_is_what_was_asked_for(start: int, end: int) -> None:
    """Of a server that sends everything."""
    assert rest(BodyWindow(ExactBody("fake", body(b"0123456789"), 10), start, end)) == b"0123456789"[start:end]


def test_nothing_comes_after_an_abort() -> None:
    """A connection that was shut down may bring anything, what is still encrypted among it."""
    given_up = body(b"0123456789")
    assert given_up.read(3) == b"012"
    given_up.abort()

    with pytest.raises(StorageUnavailableError, match="aborted"):
        given_up.read(3)
