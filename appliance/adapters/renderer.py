"""Templates rendered in a child process with a time limit and a memory limit.

A template is a program from outside, and Jinja's sandbox bounds neither its time nor its memory. A thread could not be
ended, and a loop or an operator of C holds the interpreter's lock; a process can be killed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import msgspec
import structlog

Result = TypeVar("Result")

log: structlog.stdlib.BoundLogger = structlog.get_logger()

LENGTH_BYTES = 4
"""Bytes of the length that each message between the processes begins with."""

MAX_OUTPUT_BYTES = 64 * 1024 * 1024
"""Limit on the text of a template; twice the largest body of a request, by default."""

# A rendering usually takes less than a millisecond.
_RENDER_SECONDS = 5.0

# Python starts and imports Jinja, on a machine that may be busy loading models.
_START_SECONDS = 60.0

# A template needs no other variables; some hold secrets.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class RenderError(Exception):
    """A template could not be rendered; `kind` is "refused", "undefined", "broken", "not_json" or "ended"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Renderer:
    """The child process of one model's templates; it starts with the first rendering, and again after it was killed.

    One template is rendered at a time.
    """

    def __init__(self, seconds: float = _RENDER_SECONDS) -> None:
        """`seconds` is the time limit of one rendering."""
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection = socket.socket()
        self._is_closed = False
        # The kernel ends the process with the thread that started it, so it is always the same thread.
        self._thread = ThreadPoolExecutor(1, "appliance-templates")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which renders, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def render(self, kind: str, source: str, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """Render the text of a template of the `kind` "chat" or "json"; blocks.

        Raises:
            RenderError: the template refuses, breaks, takes too long, or takes or gives too much.
        """
        try:
            request = msgspec.json.encode({"kind": kind, "source": source, "variables": variables})
        except (ValueError, OverflowError, RecursionError) as error:
            raise RenderError("broken", "the request has a value that JSON cannot have") from error
        self._require_started()
        deadline = time.monotonic() + self._seconds
        try:
            self._connection.settimeout(self._seconds)
            self._connection.sendall(message(request))
            reply = msgspec.json.decode(self._receive(deadline))
        except TimeoutError:
            self._kill()
            log.warning("template.killed", seconds=self._seconds, reason="it exceeded the time limit of a rendering")
            raise RenderError("ended", f"it takes longer than {self._seconds:g} seconds") from None
        except OSError:
            self._kill()
            log.warning("template.killed", reason="its process ended, as it does where the machine is out of memory")
            raise RenderError("ended", "its process ended") from None
        if "error" in reply:
            raise RenderError(reply["error"], reply["message"])
        return str(reply["text"])

    def close(self) -> None:
        """Kill the process and wait until a rendering under way has failed; blocks."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()
        # The thread uses the connection: it is closed when the thread is done with it.
        self._thread.shutdown(cancel_futures=True)
        self._kill()

    def _require_started(self) -> None:
        if self._is_closed:
            raise RenderError("ended", "the model is being unloaded")
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._connection, theirs = socket.socketpair()
            with theirs:
                self._process = _start(theirs)
            try:
                self._receive(time.monotonic() + _START_SECONDS)
            except OSError as error:
                self._kill()
                raise RenderError("ended", f"its process did not start: {error}") from error

    def _receive(self, deadline: float) -> bytes:
        length = int.from_bytes(self._receive_exactly(LENGTH_BYTES, deadline), "big")
        # JSON escapes make a text longer by a factor of six at most.
        if length > 6 * MAX_OUTPUT_BYTES + 1024:
            raise OSError("it gives too much")
        return self._receive_exactly(length, deadline)

    def _receive_exactly(self, length: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            # 0 would be no limit but an error if nothing is there yet.
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            if not (part := self._connection.recv(min(length - len(parts), 1 << 20))):
                raise ConnectionError("it ended")
            parts += part
        return bytes(parts)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        self._connection.close()


def _start(connection: socket.socket) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # Modules are found where this process finds them, and never first in the directory it was started in.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from appliance.adapters.templates import serve; serve()"],
        stdin=connection.fileno(),
        stdout=connection.fileno(),
        stderr=subprocess.DEVNULL,
        env=environment,
        # Ctrl-C on a terminal is for the server, which ends this process itself.
        start_new_session=True,
    )


def message(content: bytes) -> bytes:
    """Return a message with its length, big-endian, before it."""
    return len(content).to_bytes(LENGTH_BYTES, "big") + content
