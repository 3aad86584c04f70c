"""A server under test: `appliance serve FILE` in a process of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil
from server_launcher import ForkedProcess, launch

from appliance.cli.expectations import ExpectationError, check_body
from appliance.config import load

# In an order that differs from process to process.
_PORTS = iter(random.sample(range(10_000, 32_000), 22_000))


class ServerProcess:
    """``appliance serve FILE`` on a free port of the loopback, its log in a file.

    It is forked from a process that has imported the appliance, unless it `is_cold`: then it starts as for users.
    `prefix` is a command that executes the server's command, always cold; `host` is the address it listens on.
    `variables` are environment variables of the config.
    """

    process: subprocess.Popen[bytes] | ForkedProcess

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
        # No load balancer has to learn that it stops.
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
        """Return status and JSON body; the status is 0 if the connection is refused."""
        return self.ask(path, None, port=port)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """Return status and JSON body."""
        return self.ask(path, body)

    def ask(
        self, path: str, body: object, headers: Mapping[str, str] | None = None, port: int | None = None
    ) -> tuple[int, Any]:
        """Return status and JSON body; a body of bytes is sent as it is, None sends a GET."""
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
        """Return the bytes of the whole response; a body of None sends a GET."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.host}:{port or self.port}{path}", data, sent)
        with urllib.request.urlopen(request, timeout=120) as response:
            whole: bytes = response.read()
            return whole

    def state(self) -> str | None:
        """Return the state of the first model; None if the connection is refused."""
        _, body = self.get("/readyz")
        return body["models"][0]["state"] if body else None

    def wait_until_ready(self, seconds: float = 240) -> Self:
        """Wait until the server is ready; otherwise kill it, and fail with its log."""
        try:
            wait_until(self._is_settled, seconds, self.log_tail)
            assert self.get("/readyz")[0] == 200, self.log_tail()
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
        """Return all descendant processes, including the engine core."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_core(self) -> psutil.Process:
        """Return the engine core: the process with the most memory."""
        return max(self.descendants(), key=lambda process: process.memory_info().rss)

    def events(self) -> list[dict[str, Any]]:
        """Return the log events."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def request_ended(self, request_id: str) -> dict[str, Any]:
        """Wait for the event `request.ended` of a request, and return it."""

        def found() -> list[dict[str, Any]]:
            ends = (event for event in self.events() if event["event"] == "request.ended")
            return [event for event in ends if event.get("request_id") == request_id]

        wait_until(lambda: bool(found()), 10, self.log_tail)
        (event,) = found()
        return event

    def log_tail(self) -> str:
        """Return the end of the log, for messages of failed assertions."""
        return self.log.read_text()[-4000:]

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def failed_expectations(server: ServerProcess, file: Path) -> list[str]:
    """Return what of `expect:` in the file the responses do not fulfil."""
    failed = []
    for each in load(file).config.expect:
        try:
            check_body(each, server.stream(each.path, each.body).decode(), file.parent)
        except ExpectationError as error:
            failed.append(f"{each.path}: {error}")
    return failed


def free_port() -> int:
    """Return an unused port of the loopback interface, another one at each call.

    It lies below those that the kernel gives to clients and to servers on any port, which could take it meanwhile.
    """
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is left")


def wait_until(is_true: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "") -> float:
    """Wait until a condition is true; return how many seconds it took."""
    started = time.monotonic()
    while not is_true():
        assert time.monotonic() - started < seconds, f"not true after {seconds} seconds\n{why()}"
        time.sleep(0.05)
    return time.monotonic() - started


def has_exited(process: psutil.Process) -> bool:
    """Return whether the process has ended; a zombie counts."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def open_stream(port: int, path: str, body: object) -> socket.socket:
    """Send a request over a raw connection; the response is not read."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head.encode() + data)
    return connection


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of this process with changes."""
    return {**os.environ, **changes}
