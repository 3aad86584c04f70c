"""Answers over HTTP whose bodies are still to come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from yarl import URL

from appliance.core.errors import StorageError, StorageUnavailableError
from appliance.core.threads import in_thread
from appliance.storage.filesystems import http_errors
from appliance.storage.filesystems.base import Body


class ResponseBody:
    """What urllib3 receives."""

    def __init__(self, what: str, response: BaseHTTPResponse) -> None:
        self._what = what
        self._response = response
        self._is_aborted = False

    def read(self, size: int, /) -> bytes:
        try:
            block = self._response.read1(size, decode_content=False)
        except (HTTPError, OSError) as error:
            raise http_errors.unanswered(self._what, error) from error
        # After an abort, what a TLS connection brings may be anything.
        if self._is_aborted:
            raise StorageUnavailableError(f"{self._what}: given up; try again")
        return block

    def abort(self) -> None:
        self._is_aborted = True
        # An answer that has come to its end has no connection any more.
        with suppress(RuntimeError, ValueError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Let go of the connection, which can be used again when all has been read."""
        with suppress(HTTPError, OSError):
            self._response.close()


class ExactBody:
    """A body that must have `size` bytes, and no more."""

    def __init__(self, what: str, body: Body, size: int) -> None:
        self._what = what
        self._body = body
        self._left = size

    def read(self, size: int, /) -> bytes:
        # One byte further, to hear of the end; only then is the connection free for another request.
        block = self._body.read(min(size, self._left + 1))
        self._left -= len(block)
        if self._left < 0 or (self._left and not block):
            raise http_errors.cut(self._what, self._left)
        return block

    def abort(self) -> None:
        self._body.abort()


class Window:
    """The bytes from `start` up to `end` of another body."""

    def __init__(self, body: Body, start: int, end: int) -> None:
        self._body = body
        self._before = start
        self._left = end - start

    def read(self, size: int, /) -> bytes:
        while self._before:
            self._before -= len(self._body.read(min(size, self._before)))
        block = self._body.read(min(size, self._left)) if self._left else b""
        self._left -= len(block)
        return block

    def abort(self) -> None:
        self._body.abort()


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer from `url`, after redirects; its body is yet to come."""

    what: str
    url: URL
    status: int
    reason: str
    headers: Mapping[str, str]
    body: ResponseBody

    async def read(self, most: int) -> bytes:
        """The body, or the beginning of a very long one."""
        return await in_thread(self._read, most)

    def close(self) -> None:
        """Let go of the connection."""
        self.body.close()

    def _read(self, most: int) -> bytes:
        blocks, left = [], most
        while left and (block := self.body.read(left)):
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)


def part(answer: HttpResponse, size: int, start: int, end: int) -> Body:
    """The body of an answer that should have the bytes from `start` up to `end` of a file of `size` bytes.

    Raises:
        ArtifactChangedError: the file has another size by now.
        StorageUnavailableError: these are other bytes.
    """
    what = answer.what
    if encoding := answer.headers.get("Content-Encoding", "").replace("identity", ""):
        raise StorageError(f"{what}: comes with content encoding {encoding!r}; have it served as it is stored")
    if answer.status not in (200, 206):
        raise StorageUnavailableError(f"{what}: the server answers {answer.status}; try again")
    if answer.status != 200 or (start, end) != (0, size):
        http_errors.check_part(what, answer.headers.get("Content-Range"), size, start, end)
    return ExactBody(what, answer.body, end - start)


def next_page(answer: HttpResponse) -> URL | None:
    """Where an answer's Link header (RFC 8288) says that the rest of it is."""
    found = re.search(r"<([^>]*)>[^,]*;\s*rel=\"?next\b", answer.headers.get("Link", ""))
    return answer.url.join(URL(found[1], encoded=True)) if found else None
