"""
A client that reads slower than the engine writes, and an engine that writes in larger steps.
"""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest
from served import Served, until

TOKENS = 60

# It is in every event, and makes each of them so large that a few fill whatever holds them on their way.
LONG = "x" * 8000

BODY = {
    "model": "smollm2",
    "prompt": "One, two, three,",
    "temperature": 0,
    "ignore_eos": True,
    "max_tokens": TOKENS,
}


def _is_idle(server: Served) -> bool:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return 'vllm:num_requests_running{engine="0",model_name="smollm2"} 0.0' in lines


def _texts(stream: bytes) -> list[str]:
    """
    The text of each event.
    """
    return [json.loads(line[6:])["choices"][0]["text"] for line in stream.splitlines() if line.startswith(b"data: {")]


@pytest.mark.slow
def test_a_slow_client_gets_larger_pieces(server: Served) -> None:
    """
    What it has not read in time is put together: all of the text, in fewer events.
    """
    asked = json.dumps(BODY | {"stream": True, "request_id": LONG}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(asked)}"
    with socket.socket() as connection:
        # Before it connects: it is what this end promises to hold.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(f"{head}\r\n\r\n".encode() + asked)
        received = connection.recv(1024)
        until(lambda: _is_idle(server), 60)
        while piece := connection.recv(1 << 20):
            received += piece
    _, whole = server.post("/v1/completions", BODY)
    quick = server.stream("/v1/completions", BODY | {"stream": True})

    assert received.count(b"[DONE]") == 1
    assert "".join(_texts(received.partition(b"\r\n\r\n")[2])) == whole["choices"][0]["text"]
    assert len(_texts(received)) < TOKENS / 2
    assert len(_texts(quick)) > TOKENS * 0.8
