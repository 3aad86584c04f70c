"""WebSockets of the Responses API, by hand."""

from __future__ import annotations

import json
from typing import Any

from server_process import ServerProcess
from stored_server import ALICE
from websockets.sync.client import ClientConnection, connect

LAST = {"response.completed", "response.incomplete", "response.failed", "error"}

CREATE: dict[str, Any] = {"type": "response.create", "model": "ours", "input": "Hi", "store": False}
CREATED: dict[str, Any] = {
    "type": "response.created",
    "response": {"id": "resp_1", "object": "response", "status": "in_progress"},
}


def open_socket(
    server: ServerProcess, key: str = ALICE, path: str = "/v1/responses", **options: Any
) -> ClientConnection:
    """Open a WebSocket by hand."""
    headers = {"Authorization": f"Bearer {key}"}
    socket: ClientConnection = connect(
        f"ws{server.url.removeprefix('http')}{path}", additional_headers=headers, **options
    )
    return socket


def say(socket: ClientConnection, **fields: Any) -> dict[str, Any]:
    """Send a message; return the last event of its answer."""
    socket.send(json.dumps({**CREATE, **fields}))
    return events_of(socket)[-1]


def events_of(socket: ClientConnection) -> list[dict[str, Any]]:
    """Return the events of one response."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in LAST:
        events.append(json.loads(socket.recv(60)))
    return events
