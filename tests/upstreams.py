"""Upstreams beyond our border: HTTP servers that answer as they are told and remember what arrived."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import upstream_answers
from aiohttp import web
from background import Background

JSON = "application/json"
SSE = "text/event-stream"

# Long enough that whoever waits for it has given up.
FOR_EVER = 3600.0


@dataclass(slots=True)
class Asked:
    """One request as it arrived, and what became of it."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    """Every header line as it came, names in lower case."""
    body: bytes
    peer: tuple[str, int]
    """The other end of the connection: the same one twice is a connection used again."""
    sent: int = 0
    """Bytes of the answer's body that were sent so far."""
    is_answered: bool = False
    """The whole answer was sent."""
    has_left: bool = False
    """The client left before that."""
    raw_path: str = ""
    """The path as it was written, escapes and all."""

    def header(self, name: str) -> str | None:
        """The value of a header, or None."""
        return next((value for each, value in self.headers if each == name.lower()), None)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


Piece = bytes | float
"""Bytes to send, or seconds to wait."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an upstream says.

    `body` goes out at once with its length; pieces go out one by one, in chunks: bytes, and seconds of silence.
    """

    status: int = 200
    body: bytes | Iterable[Piece] | AsyncIterator[Piece] = b""
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    """Seconds before the first byte of its head."""


Reaction = Answer | Callable[[Asked], Answer]
"""An answer, or how to find one."""


def json_answer(body: object, status: int = 200, **headers: str) -> Answer:
    """A JSON body."""
    return Answer(status, json.dumps(body, ensure_ascii=False).encode(), headers=headers)


def error(status: int, message: str = "no", **fields: object) -> Answer:
    """An error in OpenAI's shape; `fields` go over `type`, `param` and `code`."""
    known: dict[str, object] = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return json_answer({"error": known | fields}, status)


def event(data: object, name: str | None = None) -> bytes:
    """One server-sent event; text is sent as it is, anything else as JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def stream(*pieces: Piece, **options: Any) -> Answer:
    """A stream of server-sent events out of pieces."""
    return Answer(body=pieces, media_type=SSE, **options)


def sse(asked: Asked) -> list[bytes]:
    """The events a well-behaved upstream streams for a request, ``[DONE]`` included where its protocol has it."""
    events: list[bytes] = []
    for each in upstream_answers.STREAMED[asked.path](asked.json()):
        if isinstance(each, tuple):
            events.append(event({"type": each[0], **each[1]}, each[0]))
        else:
            events.append(event(each))
    named = asked.path in {"/v1/responses", "/v1/messages"}
    return events if named else [*events, event("[DONE]")]


def well_behaved(asked: Asked) -> Answer:
    """The answer an upstream gives when nobody told it otherwise."""
    if asked.path in {"/health", "/v1/health"}:
        return Answer()
    if asked.path == "/v1/models":
        return json_answer({"object": "list", "data": [{"id": "upstream-model", "object": "model", "created": 1}]})
    if asked.path == "/v1/audio/speech":
        return Answer(body=b"RIFF\x00\xff\xfe", media_type="audio/wav")
    if asked.path == "/v1/audio/transcriptions":
        return json_answer({"text": f"{len(asked.body)} bytes"})
    if asked.path not in upstream_answers.WHOLE:
        return error(404, f"no route {asked.path}")
    body = asked.json()
    if body.get("stream") and asked.path in upstream_answers.STREAMED:
        return Answer(body=sse(asked), media_type=SSE)
    return json_answer(upstream_answers.WHOLE[asked.path](body))


class Upstream(Background):
    """A scripted server on a free port of the loopback."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.port = 0
        self._scripts: dict[str, list[Reaction]] = {}
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Its base URL, with OpenAI's `/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def origin(self) -> str:
        """The same without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Asked]:
        """What was asked, without health checks and listings."""
        return [each for each in self.asked if each.method == "POST"]

    def on(self, path: str, *reactions: Reaction) -> None:
        """React so at a path, one after the other, the last one from then on; none of them is good behaviour again.

        The path ``*`` is every path without reactions of its own.
        """
        self._scripts[path] = list(reactions)

    def reset(self) -> None:
        """Well-behaved again, and nothing remembered."""
        self._scripts.clear()
        self.asked.clear()

    async def open(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # Its handlers hear when the client leaves.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Listen no more, and end what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = await _remember(request)
        self.asked.append(asked)
        try:
            response = await _say(request, asked, self._reaction(asked))
        except (asyncio.CancelledError, ConnectionError):
            asked.has_left = True
            raise
        asked.is_answered = True
        return response

    def _reaction(self, asked: Asked) -> Answer:
        queue = self._scripts.get(asked.path) or self._scripts.get("*")
        if not queue:
            return well_behaved(asked)
        reaction = queue.pop(0) if len(queue) > 1 else queue[0]
        return reaction if isinstance(reaction, Answer) else reaction(asked)


async def _remember(request: web.Request) -> Asked:
    headers = [(name.decode().lower(), value.decode()) for name, value in request.raw_headers]
    assert request.transport is not None
    peer = request.transport.get_extra_info("peername")
    asked = Asked(request.method, request.path, request.query_string, headers, await request.read(), peer)
    asked.raw_path = request.rel_url.raw_path
    return asked


async def _say(request: web.Request, asked: Asked, answer: Answer) -> web.StreamResponse:
    if answer.wait:
        await asyncio.sleep(answer.wait)
    headers = {"Content-Type": answer.media_type, **answer.headers}
    if isinstance(answer.body, bytes):
        asked.sent = len(answer.body)
        return web.Response(status=answer.status, body=answer.body, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    async for piece in _pieces(answer.body):
        if isinstance(piece, bytes):
            await response.write(piece)
            asked.sent += len(piece)
        else:
            await asyncio.sleep(piece)
    await response.write_eof()
    return response


async def _pieces(body: Iterable[Piece] | AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    if isinstance(body, AsyncIterator):
        async for piece in body:
            yield piece
        return
    for piece in body:
        yield piece


def zipped(answer: Answer) -> Answer:
    """The same answer in gzip."""
    assert isinstance(answer.body, bytes)
    headers = {**answer.headers, "Content-Encoding": "gzip"}
    return Answer(answer.status, gzip.compress(answer.body, mtime=0), answer.media_type, headers)
