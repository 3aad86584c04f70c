"""The appliance as a process of its own, as people run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil
from server_launcher import ForkedServer, launch

from appliance.config import load


class Served:
    """``appliance serve FILE`` on a free port of the loopback, its log in a file.

    It is forked from a process that has imported the appliance, unless it `is_cold`: then it is started as people do.
    `prefix` is what to put before the command, which is cold; it ends in becoming it. `host` is where it listens then.
    `variables` go over the environment: those of the config alone.
    """

    process: subprocess.Popen[bytes] | ForkedServer

    def __init__(
        self,
        file: Path,
        log: Path,
        *overrides: str,
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
        is_cold: bool = False,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.port = free_port()
        self.log = log
        self.host = host
        self.url = f"http://{host}:{self.port}"
        own = [f"server.port={self.port}", f"server.host={host}", "logging.format=json"]
        # Nobody is sent to it but by the test, which knows when it goes.
        changes = [*own, "server.drain_delay_seconds=0", *overrides]
        words = ["serve", str(file), *(word for change in changes for word in ("--set", change))]
        self.started = time.monotonic()
        if not is_cold and not prefix and (process := launch(file, words, log, variables)) is not None:
            self.process = process
            return
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "appliance", *words],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=environment(**variables),
            )

    def get(self, path: str, port: int | None = None) -> tuple[int, Any]:
        """Status and JSON body; status 0 where nobody listens."""
        return self.ask(path, None, port=port)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """Status and JSON body."""
        return self.ask(path, body)

    def ask(
        self, path: str, body: object, headers: Mapping[str, str] | None = None, port: int | None = None
    ) -> tuple[int, Any]:
        """Status and JSON body; bytes are sent as they are, None makes it a GET."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        url = f"http://{self.host}:{port or self.port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, None

    def stream(
        self, path: str, body: object, headers: Mapping[str, str] | None = None, port: int | None = None
    ) -> bytes:
        """The whole of an answer, as its bytes; None makes it a GET."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.host}:{port or self.port}{path}", data, sent)
        with urllib.request.urlopen(request, timeout=120) as response:
            whole: bytes = response.read()
            return whole

    def state(self) -> str | None:
        """The first model's state, or None while nobody listens."""
        _, body = self.get("/readyz")
        return body["models"][0]["state"] if body else None

    def until_ready(self, seconds: float = 240) -> Self:
        """Wait until it is ready; when it never is, fail with its log and leave nothing running."""
        try:
            until(self._is_settled, seconds, self.tail)
            assert self.get("/readyz")[0] == 200, self.tail()
        except BaseException:
            self.process.kill()
            self.process.wait(30)
            raise
        return self

    def _is_settled(self) -> bool:
        status, body = self.get("/readyz")
        has_failed = any(model["state"] == "failed" for model in body["models"]) if body else False
        return status == 200 or has_failed or self.process.poll() is not None

    def descendants(self) -> list[psutil.Process]:
        """Every process under it, the engine core among them."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_core(self) -> psutil.Process:
        """The process the model runs in: the one with the most memory."""
        return max(self.descendants(), key=lambda process: process.memory_info().rss)

    def events(self) -> list[dict[str, Any]]:
        """The log, one object a line."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ended(self, request_id: str) -> dict[str, Any]:
        """The one event that tells of the end of a request, once it is there."""

        def found() -> list[dict[str, Any]]:
            ends = (event for event in self.events() if event["event"] == "request.ended")
            return [event for event in ends if event.get("request_id") == request_id]

        until(lambda: bool(found()), 10, self.tail)
        (event,) = found()
        return event

    def tail(self) -> str:
        """The end of the log, for a failure's message."""
        return self.log.read_text()[-4000:]

    def end(self) -> int:
        """SIGTERM, wait, exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def broken_promises(server: Served, file: Path) -> list[str]:
    """What is not in the answers although `expect:` of the file says so."""
    texts = [(each, server.stream(each.path, each.body).decode()) for each in load(file).config.expect]
    return [
        f"{each.path}: {part}: {text}"
        for each, text in texts
        for part in ([each.contains] if isinstance(each.contains, str) else each.contains)
        if part not in text
    ]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(is_so: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "") -> float:
    """Wait until something is so, and say how long it took."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds, f"not so after {seconds} seconds\n{why()}"
        time.sleep(0.05)
    return time.monotonic() - started


def is_gone(process: psutil.Process) -> bool:
    """It has ended; a zombie that nobody has reaped yet counts."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def open_stream(port: int, path: str, body: object) -> socket.socket:
    """A raw connection whose request is sent and whose answer is not read."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head.encode() + data)
    return connection


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with changes."""
    return {**os.environ, **changes}
