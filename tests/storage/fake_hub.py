"""A fake Hugging Face hub over HTTP on the loopback, with repositories in memory and injected faults.

It has the routes that resolve, list and download need, here and in huggingface_hub:
https://huggingface.co/docs/hub/api, and ``huggingface_hub/hf_api.py``.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from aiohttp import web
from yarl import URL

# The hub keeps large files apart from git, each under its SHA-256; here the name decides.
LARGE = {".bin", ".gguf", ".safetensors"}

_ROUTES = (
    ("model", re.compile(r"/api/models/(?P<name>[^/]+(?:/[^/]+)?)/revision/(?P<revision>[^/]+)")),
    ("refs", re.compile(r"/api/models/(?P<name>[^/]+(?:/[^/]+)?)/refs")),
    ("tree", re.compile(r"/api/models/(?P<name>[^/]+(?:/[^/]+)?)/tree/(?P<revision>[^/]+)")),
    ("file", re.compile(r"/(?P<name>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")),
)
_CHUNKS = 10


@dataclass
class Repository:
    """A model: its commits by their ids, and what its branches point to."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """The only valid token; None for a public model."""
    login: str | None = None
    """The only valid header of a login, where a mirror asks for one."""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files on a branch, and return the commit's id."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass
class Hub:
    """The repositories of a hub, its injected faults, and the requests it received."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    status: int | None = None
    """The status of every response, if set."""
    file_status: int | None = None
    """The status of every response for a file, if set."""
    resets: int = 0
    """How many downloads break in the middle, counted down."""
    corrupted_file: str | None = None
    """The file that is sent with one bit flipped."""
    delay_seconds: float = 0
    """The wait after each tenth of a file."""
    stalls: bool = False
    """Whether nothing is sent after the first half of a file."""
    redirects_files: bool = False
    """Whether files are on another host, as the hub's large ones are, at addresses with a signature."""
    file_host_url: str = ""
    """The address of that host."""
    signature: str = "1"
    """The only signature that the other host accepts."""
    lists_sizes: bool = True
    """Whether the info of a model has the sizes of its files; that of some mirrors has not."""
    page: int = 1000
    """How many files a page of a tree has."""
    link_host: str = ""
    """The address in links to the next page, if it is not that of this hub, as mirrors pass on the hub's own."""
    limited: int = 0
    """How many requests are refused because of the rate limit, counted down."""
    limit_seconds: int = 3
    """How long the rate limit lasts, as the refused are told."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    file_host_requests: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request to the other host."""

    def repository(self, name: str) -> Repository:
        """Return the repository of this name, created if it does not exist."""
        return self.repositories.setdefault(name, Repository())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handle any request."""
        self.requests.append(f"{request.method} {request.path}")
        if self.limited:
            self.limited -= 1
            return web.Response(status=429, headers={"RateLimit": f'"api";r=0;t={self.limit_seconds}'})
        if self.status is not None:
            return web.Response(status=self.status)
        for kind, route in _ROUTES:
            if found := route.fullmatch(request.rel_url.raw_path):
                parts = {part: unquote(text) for part, text in found.groupdict().items()}
                return await self._handle(request, kind, **parts)
        return web.Response(status=404)

    async def handle_file_request(self, request: web.Request) -> web.StreamResponse:
        """Handle a request for a file to the other host."""
        self.file_host_requests.append(dict(request.headers))
        if request.query.get("signature") != self.signature:
            return web.Response(status=403)
        _, _, name, commit, path = request.rel_url.raw_path.split("/", 4)
        return await self._send(request, commit, path, self.repositories[unquote(name)].commits[commit][unquote(path)])

    async def _handle(
        self, request: web.Request, kind: str, name: str, revision: str = "main", path: str = ""
    ) -> web.StreamResponse:
        repository = self.repositories.get(name)
        given = request.headers.get("Authorization")
        if given == "Bearer wrong":
            return _error(401, "", "Invalid credentials in Authorization header")
        if repository and repository.login not in (None, given):
            return _error(401, "", "Log in")
        if repository is None:
            # Without a token the hub responds alike for missing and private models.
            return _error(401, "RepoNotFound", "Repository not found")
        # The info of a gated model is public; its files need access.
        if kind == "file" and repository.token and given != f"Bearer {repository.token}":
            return _error(403 if given else 401, "GatedRepo", f"Access to model {name} is restricted")
        if kind == "refs":
            branches = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in repository.branches.items()
            ]
            return web.json_response({"branches": branches, "tags": [], "converts": []})
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if kind == "model":
            siblings = [
                _sibling(file, data) if self.lists_sizes else {"rfilename": file} for file, data in files.items()
            ]
            return web.json_response({"id": name, "sha": commit, "siblings": siblings})
        if kind == "tree":
            return self._tree(request, files)
        return await self._file(request, name, commit, path)

    def _tree(self, request: web.Request, files: dict[str, bytes]) -> web.Response:
        begin = int(request.query.get("cursor", 0))
        end = begin + self.page
        entries = [_entry(file, data) for file, data in files.items()]
        further = f'<{self.link_host or self.url}{request.path}?recursive=true&cursor={end}>; rel="next"'
        headers = {"link": further} if end < len(entries) else None
        return web.json_response(entries[begin:end], headers=headers)

    async def _file(self, request: web.Request, name: str, commit: str, path: str) -> web.StreamResponse:
        if self.file_status is not None:
            return web.Response(status=self.file_status)
        if path not in self.repositories[name].commits[commit]:
            return _error(404, "EntryNotFound", "Entry not found")
        if self.redirects_files:
            place = f"{self.file_host_url}/files/{quote(name, safe='')}/{commit}/{quote(path)}"
            raise web.HTTPFound(URL(place, encoded=True).with_query({"signature": self.signature}))
        return await self._send(request, commit, path, self.repositories[name].commits[commit][path])

    async def _send(self, request: web.Request, commit: str, path: str, data: bytes) -> web.StreamResponse:
        entry = _entry(path, data)
        asked = request.http_range
        begin = min(asked.start or 0, len(data))
        end = min(asked.stop or len(data), len(data))
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" in entry:
            headers |= {"X-Linked-ETag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
        if is_part := "Range" in request.headers:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        response.content_length = end - begin
        await response.prepare(request)
        if request.method == "GET":
            whole = _flipped(data) if path == self.corrupted_file else data
            await self._write_slowly(request, response, whole[begin:end])
        return response

    async def _write_slowly(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        step = max(1, len(data) // _CHUNKS)
        for start in range(0, len(data), step):
            await response.write(data[start : start + step])
            await asyncio.sleep(self.delay_seconds)
            if start >= len(data) // 2:
                if self.stalls:
                    await asyncio.Event().wait()
                if self.resets:
                    self.resets -= 1
                    _reset(request)
                    return


def _error(status: int, code: str, message: str) -> web.Response:
    return web.Response(status=status, headers={"X-Error-Code": code, "X-Error-Message": message})


@lru_cache
def _entry(path: str, data: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, object] = {"type": "file", "oid": oid, "size": len(data), "path": path}
    if PurePosixPath(path).suffix in LARGE:
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


def _sibling(path: str, data: bytes) -> dict[str, object]:
    entry = _entry(path, data)
    lfs = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134} if "lfs" in entry else None
    return {"rfilename": path, "size": len(data), "blobId": entry["oid"], "lfs": lfs}


@lru_cache
def _sha256(data: bytes) -> str:
    # The same object is asked for with each range of a large file.
    return hashlib.sha256(data).hexdigest()


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _reset(request: web.Request) -> None:
    """Break the connection the hard way: without lingering, the kernel sends RST."""
    assert request.transport is not None
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub at its `url`, in a thread, until the end of the block."""
    hub = Hub()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(_start(hub), loop).result()
    try:
        yield hub
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(hub: Hub) -> web.AppRunner:
    elsewhere = web.Application()
    elsewhere.router.add_get("/{path:.*}", hub.handle_file_request)
    other = web.AppRunner(elsewhere, shutdown_timeout=0.1)
    hub.file_host_url = await _listen(other)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", hub.handle)
    application.on_cleanup.append(lambda _: other.cleanup())
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    hub.url = await _listen(runner)
    return runner


async def _listen(runner: web.AppRunner) -> str:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    return f"http://{host}:{port}"
