"""Templates rendered in a child process with a time limit and a memory limit.

A template is a program from outside, and Jinja's sandbox bounds neither its time nor its memory. A thread could not be
ended, and a loop or an operator of C holds the interpreter's lock; a process can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import IO, Any, ParamSpec, Self, TypeVar

import msgspec
import structlog

from appliance.adapters.templates import ChatTemplate, JsonTemplate, RenderError
from appliance.core.child_process import end_with_parent, limit_resources

P = ParamSpec("P")
Result = TypeVar("Result")

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Each message on the pipes begins with its length, big-endian.
_LENGTH_BYTES = 4

# Twice the largest body of a request, by default.
_MAX_OUTPUT_BYTES = 64 * 1024 * 1024

# A rendering usually takes less than a millisecond.
_RENDER_SECONDS = 5.0

# Python starts and imports Jinja, on a machine that may be busy loading models.
_START_SECONDS = 60.0

# Address space of the child, of which Python and Jinja take a tenth; a body of 32 MiB needs less than a half.
_MEMORY_BYTES = 1024 * 1024 * 1024

# A template needs no other variables; some hold secrets.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class Renderer:
    """The child process of one model's templates; it starts with the first rendering, and again after it was killed.

    One template is rendered at a time.
    """

    def __init__(self, seconds: float = _RENDER_SECONDS) -> None:
        """`seconds` is the time limit of one rendering."""
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        # The kernel ends the process with the thread that started it, so it is always the same thread.
        self._thread = ThreadPoolExecutor(1, "appliance-templates")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def run(self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return the result of `work`, which renders, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    def render(self, kind: str, source: str, variables: Mapping[str, Any]) -> str:  # Any: JSON values
        """Render the text of a template of the `kind` "chat" or "json"; blocks.

        Raises:
            RenderError: the template refuses, breaks, takes too long, or takes or gives too much.
        """
        try:
            request = msgspec.json.encode({"kind": kind, "source": source, "variables": variables})
        except (ValueError, OverflowError, RecursionError) as error:
            raise RenderError("broken", "the request has a value that JSON cannot have") from error
        process = self._started()
        deadline = time.monotonic() + self._seconds
        try:
            _write(process.stdin, request, deadline)
            reply = msgspec.json.decode(_read(process.stdout, deadline))
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
        # The thread reads from the pipes: they are closed when it is done with them.
        self._thread.shutdown(cancel_futures=True)
        self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise RenderError("ended", "the model is being unloaded")
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._process = _start()
            try:
                _read(self._process.stdout, time.monotonic() + _START_SECONDS)
            except OSError as error:
                self._kill()
                raise RenderError("ended", f"its process did not start: {error}") from error
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    _opened(pipe).close()


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # Modules are found where this process finds them, and never first in the directory it was started in.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from appliance.adapters.renderer import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=environment,
        # Ctrl-C on a terminal is for the server, which ends this process itself.
        start_new_session=True,
    )
    for pipe in (process.stdin, process.stdout):
        os.set_blocking(_opened(pipe).fileno(), False)
    return process


def _write(pipe: IO[bytes] | None, message: bytes, deadline: float) -> None:
    number = _opened(pipe).fileno()
    left = memoryview(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
    while left:
        _wait(number, select.POLLOUT, deadline)
        left = left[os.write(number, left) :]


def _read(pipe: IO[bytes] | None, deadline: float) -> bytes:
    number = _opened(pipe).fileno()
    length = int.from_bytes(_read_exactly(number, _LENGTH_BYTES, deadline), "big")
    # JSON escapes make a text longer by a factor of six at most.
    if length > 6 * _MAX_OUTPUT_BYTES + 1024:
        raise OSError("it gives too much")
    return _read_exactly(number, length, deadline)


def _read_exactly(number: int, length: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        _wait(number, select.POLLIN, deadline)
        if not (part := os.read(number, min(length - len(parts), 1 << 20))):
            raise ConnectionError("it ended")
        parts += part
    return bytes(parts)


def _wait(number: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(number, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 - `_start` opened it
    return pipe


def serve() -> None:
    """Render templates in the child process until the parent closes the pipe."""
    parent = os.getppid()
    end_with_parent(parent)
    limit_resources(memory_bytes=_MEMORY_BYTES)
    _respond({"text": "ready"})
    while os.getppid() == parent and (head := sys.stdin.buffer.read(_LENGTH_BYTES)):
        _respond(_render(sys.stdin.buffer.read(int.from_bytes(head, "big"))))


def _render(request: bytes) -> dict[str, str]:
    try:
        fields = msgspec.json.decode(request)
        text = _compile(fields["kind"], fields["source"]).render_here(fields["variables"])
    except RenderError as error:
        return {"error": error.kind, "message": str(error)}
    except MemoryError:
        return {"error": "broken", "message": "it takes too much memory"}
    if len(text) > _MAX_OUTPUT_BYTES:
        return {"error": "broken", "message": f"it gives more than {_MAX_OUTPUT_BYTES} characters"}
    return {"text": text}


@lru_cache(maxsize=16)
def _compile(kind: str, source: str) -> ChatTemplate | JsonTemplate:
    return ChatTemplate(source) if kind == "chat" else JsonTemplate(source)


def _respond(response: dict[str, str]) -> None:
    try:
        message = msgspec.json.encode(response)
    except (MemoryError, ValueError) as error:
        # Half of a surrogate pair, which no text over HTTP can have.
        reason = "it takes too much memory" if isinstance(error, MemoryError) else "its text cannot be written as UTF-8"
        message = msgspec.json.encode({"error": "broken", "message": reason})
    sys.stdout.buffer.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
    sys.stdout.buffer.flush()
