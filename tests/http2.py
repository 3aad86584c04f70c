"""HTTP/2 down to its frames, for what clients keep to themselves: when they are told to go."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

# Kinds of frames (RFC 9113, section 6).
DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7

_END_STREAM, _END_HEADERS = 1, 4
_HEAD_BYTES = 9


def ask(port: int, path: str, body: object, authority: str = "localhost") -> socket.socket:
    """A connection with one request on it, of stream 1; what comes of it is read with `frames`."""
    data = json.dumps(body).encode()
    said = {":method": "POST", ":scheme": "http", ":path": path, ":authority": authority}
    head = b"".join(map(_field, said | {"content-type": "application/json"}, [*said.values(), "application/json"]))
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    sent = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        _frame(SETTINGS, 0, 0),
        _frame(HEADERS, _END_HEADERS, 1, head),
        _frame(DATA, _END_STREAM, 1, data),
    ]
    connection.sendall(b"".join(sent))
    return connection


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The kind and the payload of each frame, until the answer is whole."""
    with connection.makefile("rb") as received:
        while len(head := received.read(_HEAD_BYTES)) == _HEAD_BYTES:
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
            yield kind, received.read(int.from_bytes(head[:3]))
            if stream == 1 and flags & _END_STREAM:
                return


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _field(name: str, value: str) -> bytes:
    """A literal that nobody is to remember (RFC 7541, section 6.2.2)."""
    return b"\0" + b"".join(bytes((len(each),)) + each.encode() for each in (name, value))
