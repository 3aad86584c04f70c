"""Probes while streams take all that the server has."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess, free_port, open_stream

STREAMS = 40
BODY = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "stream": True}

# What Kubernetes waits for a probe unless it is told otherwise.
_PROBE_SECONDS = 1.0


def _drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


def _probe(server: ServerProcess, port: int) -> float:
    began = time.monotonic()
    assert server.get("/livez", port=port)[0] == 200
    return time.monotonic() - began


@pytest.mark.faults
def test_probes_are_quick_while_streams_run_at_full_speed(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """For a minute, forty streams that are as fast as they are read: the slowest probe is in time, at both ports."""
    upstream, probe_port = free_port(), free_port()
    firehose = subprocess.Popen([sys.executable, Path(__file__).with_name("firehose.py"), str(upstream)])
    file = tmp_path / "config.yaml"
    file.write_text(f"models: [{{name: one, class: proxy, upstreams: [{{url: 'http://127.0.0.1:{upstream}'}}]}}]\n")
    try:
        server = serve(f"server.probe_port={probe_port}", "server.drain_seconds=1", file=file).wait_until_ready(60)
        streams = [open_stream(server.port, "/v1/chat/completions", BODY) for _ in range(STREAMS)]
        for each in streams:
            threading.Thread(target=_drain, args=(each,), daemon=True).start()
        slowest = dict.fromkeys((server.port, probe_port), 0.0)
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            for port in slowest:
                slowest[port] = max(slowest[port], _probe(server, port))
            time.sleep(0.1)
        for each in streams:
            each.shutdown(socket.SHUT_RDWR)
            each.close()
    finally:
        firehose.kill()
        firehose.wait(30)

    assert max(slowest.values()) < _PROBE_SECONDS, slowest
