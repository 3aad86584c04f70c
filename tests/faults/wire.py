"""Requests by the byte: what no well-behaved client would send."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping
from typing import Any

_OPENAI = {"message", "type", "param", "code"}
_INFERENCE = re.compile(r"/v2(?!/rerank$)(/.*)?|/v1/models/.+:(predict|explain)")


def post(path: bytes, body: bytes = b"", headers: Mapping[bytes, bytes] | None = None) -> bytes:
    """A request as it goes over the wire; a header given replaces ours."""
    fields = {b"Host": b"localhost", b"Content-Type": b"application/json", b"Content-Length": b"%d" % len(body)}
    lines = [name + b": " + value for name, value in {**fields, **(headers or {})}.items()]
    return b"POST " + path + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


def exchange(port: int, request: bytes, seconds: float = 30) -> tuple[int, bytes]:
    """Status and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(request)
        return answer(connection)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read the answer on a connection whose request is sent."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def is_refusal(path: str, status: int, body: bytes) -> bool:
    """A client's error in the envelope of the protocol that is spoken at a path, with a text in it."""
    if not 400 <= status < 500:
        return False
    try:
        error: Any = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return False
    if _INFERENCE.fullmatch(path):
        return isinstance(error, str) and bool(error)
    return isinstance(error, dict) and set(error) == _OPENAI and bool(error["message"])
