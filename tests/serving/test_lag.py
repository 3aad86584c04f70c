"""A client that reads slower than the engine writes."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import Any

import pytest
from server_process import ServerProcess, wait_until

PATH = "/v1/completions"
TOKENS = 240

BODY = {
    "model": "smollm2",
    "prompt": "One, two, three,",
    "temperature": 0,
    "ignore_eos": True,
    "max_tokens": TOKENS,
    # Events of a kilobyte, some seventy of which fill whatever holds them on their way.
    "logprobs": 20,
    "stream": True,
}


def _is_idle(server: ServerProcess) -> bool:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return 'vllm:num_requests_running{engine="0",model_name="smollm2"} 0.0' in lines


def _tokens(stream: bytes) -> list[list[str]]:
    """Those of each event."""
    events: list[Any] = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    return [(event["choices"][0]["logprobs"] or {"tokens": []})["tokens"] for event in events]


@pytest.mark.slow
def test_a_slow_client_gets_larger_pieces(server: ServerProcess) -> None:
    """What it has not read in time is put together: each token is there, in fewer events."""
    asked = json.dumps(BODY).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(asked)}\r\n\r\n"
    with socket.socket() as connection:
        # Before it connects: it is what this end promises to hold.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(240)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head.encode() + asked)
        received = connection.recv(1024)
        wait_until(lambda: _is_idle(server), 240)
        while piece := connection.recv(1 << 20):
            received += piece
    tokens = _tokens(received)

    assert received.count(b"[DONE]") == 1
    assert sum(map(len, tokens)) == TOKENS
    assert len(tokens) < TOKENS * 0.7
