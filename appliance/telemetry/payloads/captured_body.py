"""A copy of what passes by in one request: as much as may be kept, and nothing held up."""

from __future__ import annotations


class CapturedBody:
    """The beginning of a body, up to `most` bytes."""

    __slots__ = ("_chunks", "_left", "is_cut", "media_type")

    def __init__(self, most: int) -> None:
        self._chunks: list[bytes] = []
        self._left = most
        self.is_cut = False
        self.media_type = "application/json"

    def add(self, chunk: bytes) -> None:
        """Take in what came next."""
        if len(chunk) > self._left:
            chunk, self.is_cut = chunk[: self._left], True
        if chunk:
            self._left -= len(chunk)
            self._chunks.append(chunk)

    def whole(self) -> bytes:
        """All of it."""
        return b"".join(self._chunks)


class BodyCapture:
    """The two bodies of a request."""

    __slots__ = ("request", "response")

    def __init__(self, most: int) -> None:
        self.request, self.response = CapturedBody(most), CapturedBody(most)
