"""A web server for ranges of files, that counts what it sends and can be made to do something at a certain byte."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_BLOCK = 16 * 1024


@dataclass
class RangeServer:
    """Files by their names; `at_byte` is called once, when `trigger` bytes of them were sent."""

    files: Mapping[str, bytes | int]
    """The contents of each, or how many zeros it has."""

    port: int = 0
    sent: int = 0
    trigger: int | None = None
    at_byte: Callable[[], None] = lambda: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def uri(self) -> str:
        """The directory of all files."""
        return f"http://127.0.0.1:{self.port}/model/"

    def count(self, size: int) -> None:
        """So many bytes more were sent."""
        with self.lock:
            self.sent += size
            if self.trigger is None or self.sent < self.trigger:
                return
            self.trigger = None
        self.at_byte()


@contextmanager
def serving(files: Mapping[str, bytes | int]) -> Iterator[RangeServer]:
    """A server until the end of the block."""
    sums = "".join(f"{_sha256(data)}  {name}\n" for name, data in files.items()).encode()
    server = RangeServer(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            pass

        def do_GET(self) -> None:
            name = self.path.removeprefix("/model/")
            data = sums if name == "SHA256SUMS" else files[name]
            size = data if isinstance(data, int) else len(data)
            start, end = self._range(size)
            self.send_response(206)
            self.send_header("ETag", f'"{name}"')
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            # A client that was killed is what the test is about.
            with suppress(OSError):
                self._write_slowly(data, start, end)

        def _range(self, size: int) -> tuple[int, int]:
            if self.headers["Range"] is None:
                return 0, size
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert found
            return int(found[1]), min(int(found[2]) + 1, size)

        def _write_slowly(self, data: bytes | int, start: int, end: int) -> None:
            for begin in range(start, end, _BLOCK):
                stop = min(begin + _BLOCK, end)
                self.wfile.write(bytes(stop - begin) if isinstance(data, int) else data[begin:stop])
                server.count(stop - begin)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:  # Any: socketserver's own
            if not isinstance(sys.exception(), OSError):
                super().handle_error(*arguments)

    http = Server(("127.0.0.1", 0), Handler)
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def _sha256(data: bytes | int) -> str:
    state = hashlib.sha256()
    for begin in range(0, data if isinstance(data, int) else len(data), 1 << 20):
        state.update(bytes(min(1 << 20, data - begin)) if isinstance(data, int) else data[begin : begin + (1 << 20)])
    return state.hexdigest()
