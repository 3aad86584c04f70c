"""A file of which an upstream sends nothing but its size."""

from __future__ import annotations

from upstreams import FOR_EVER, Answer, Asked


def stalled(asked: Asked) -> Answer:
    """A file of 4000 bytes of which the first one comes alone."""
    if asked.header("range") == "bytes=0-0":
        return Answer(206, b"0", "text/plain", {"Content-Range": "bytes 0-0/4000", "ETag": '"1"'})
    return Answer(206, [FOR_EVER], "text/plain", {"Content-Range": "bytes 0-3999/4000", "ETag": '"1"'})
