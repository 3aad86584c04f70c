"""Quirks of real upstreams that are in no specification: streams and errors."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping

from upstreams import SSE, Answer, Asked, error, event, json_answer, sse, stream

STREAMS: Mapping[str, Callable[[Asked], Answer]] = {
    # OpenRouter and many gateways, while the model thinks.
    "comments": lambda asked: stream(b": OPENROUTER PROCESSING\n\n", *_each(asked, lambda one: b": ping\n\n" + one)),
    # Anthropic and others name their events, and give them numbers.
    "names and ids": lambda asked: stream(*_each(asked, lambda one: b"event: message\nid: 7\nretry: 10\n" + one)),
    "no [DONE]": lambda asked: stream(*sse(asked)[:-1]),
    "no blank line at the end": lambda asked: stream(*sse(asked)[:-1], b"data: [DONE]"),
    "CRLF": lambda asked: stream(*_each(asked, lambda one: one.replace(b"\n", b"\r\n"))),
    "no space after the colon": lambda asked: stream(*_each(asked, lambda one: one.replace(b"data: ", b"data:"))),
    "all in one chunk": lambda asked: stream(b"".join(sse(asked))),
    # Each byte for itself: events, lines and characters are all split.
    "byte by byte": lambda asked: stream(*(bytes([one]) for one in b"".join(sse(asked)))),
    "gzip": lambda asked: stream(gzip.compress(b"".join(sse(asked)), mtime=0), headers={"Content-Encoding": "gzip"}),
    "charset": lambda asked: Answer(body=sse(asked), media_type=f"{SSE}; charset=utf-8"),
    "an event that is no JSON": lambda asked: stream(event("{broken"), *sse(asked)),
    "an error in the middle": lambda asked: stream(sse(asked)[0], event({"error": {"message": "broke", "code": 500}})),
}
"""Streams of one valid response, each with a quirk."""

ERRORS: Mapping[str, Answer] = {
    "integer code": error(400, "too long", code=400),
    "text code": error(404, "no such model", code="model_not_found"),
    "null code": error(400, "bad", code=None, param=None),
    "fields missing": json_answer({"error": {"message": "bad"}}, 422),
    "text for an error": json_answer({"error": "model not found"}, 404),
    "vLLM before 0.10": json_answer({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}, 400),
    "FastAPI": json_answer({"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, 422),
    "a page": Answer(502, b"<html><h1>502 Bad Gateway</h1></html>", "text/html"),
    "nothing": Answer(503),
    "too many": error(429, "slow down", code="rate_limit_exceeded"),
}
"""Errors with bodies of all shapes; each is passed on unchanged."""


def _each(asked: Asked, change: Callable[[bytes], bytes]) -> list[bytes]:
    return [change(one) for one in sse(asked)]
