"""
Web servers: nginx where it is installed, one of our own that tells what it saw, and Python's, which knows no ranges.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aiohttp import web
from server_process import free_port
from storage.servers.processes import running

_NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; autoindex on; }}
}}
"""


@dataclass
class WebServer:
    """A server of the files below a directory."""

    root: Path
    port: int = 0
    wants: dict[str, str] = field(default_factory=dict)
    """Headers that a request needs, lest it be answered 401."""
    leads_to: str = ""
    """The address that every request is sent on to."""
    pages: dict[str, str] = field(default_factory=dict)
    """Pages of HTML by their paths."""
    is_dynamic: bool = False
    """Whether answers say nothing about versions, as those of programs do not."""
    seen: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request."""
    _second: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def put(self, name: str, data: bytes) -> None:
        """Store a file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        # nginx tells versions by size and whole seconds, and tests are quicker than that.
        self._second = max(self._second + 1, int(time.time()))
        os.utime(path, (self._second, self._second))

    def list_files(self, name: str) -> None:
        """Write the listing of a directory, as sha256sum does."""
        place = self.root / name
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
        lines = [f"{sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(place)}\n" for path in files]
        (place / "SHA256SUMS").write_text("".join(lines))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer any request."""
        self.seen.append(dict(request.headers))
        if any(request.headers.get(name) != value for name, value in self.wants.items()):
            return web.Response(status=401)
        if self.leads_to:
            raise web.HTTPTemporaryRedirect(self.leads_to + request.path_qs)
        if request.path in self.pages:
            return web.Response(text=self.pages[request.path], content_type="text/html")
        path = self.root / request.path.lstrip("/")
        if self.is_dynamic:
            return web.Response(body=path.read_bytes())
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)


@contextmanager
def own(root: Path) -> Iterator[WebServer]:
    """A server in a thread, with byte ranges and tags."""
    server = WebServer(root)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="web server")
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(_start(server), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(server: WebServer) -> web.AppRunner:
    application = web.Application()
    application.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    return runner


@contextmanager
def nginx(directory: Path) -> Iterator[WebServer]:
    """The real thing, with all of its files in `directory`; it must be installed."""
    port = free_port()
    server = WebServer(directory / "root", port)
    server.root.mkdir()
    # A worker of root's needs a way to the files.
    for above in (server.root, directory):
        above.chmod(0o755)
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, root=server.root, port=port))
    with running([shutil.which("nginx") or "nginx", "-c", config], server.url, directory / "log"):
        yield server


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
        pass


@contextmanager
def without_ranges(root: Path) -> Iterator[WebServer]:
    """Python's own server: it sends every file whole, whatever it is asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield WebServer(root, server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
