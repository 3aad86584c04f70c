"""The store over an fsspec filesystem: listing, reads of ranges, and errors, the same for every scheme."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from operator import methodcaller
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, get_loop

from appliance.config.storage import GlobalStorageConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import (
    AccessDeniedError,
    ApplianceError,
    ArtifactNotFoundError,
    MissingExtraError,
    MissingPackageError,
    StorageError,
    StorageUnavailableError,
)
from appliance.core.suggestions import did_you_mean
from appliance.core.uri import redact
from appliance.storage.filesystems import errors
from appliance.storage.filesystems.base import NO_OPTIONS, Body, Listing, Options, RemoteFile
from appliance.storage.filesystems.errors import FailedResponse

Item = TypeVar("Item")
Result = TypeVar("Result")

Info = Mapping[str, Any]
"""What a filesystem says about a file; each has its own fields beside `type` and `size`."""

_CONCURRENCY = 16

# What the I/O loop receives of one response before it wakes the thread that waits for it.
_HANDOVER_BYTES = 1024 * 1024
_HANDOVER_SECONDS = 0.2

# One request of a filesystem that returns a range whole, held in memory and lost with a kill or a broken connection.
_PART_BYTES = 1024 * 1024

# The field of a listing that changes with the contents, in order of preference.
_VERSION_FIELDS = (
    *("ETag", "etag", "e_tag", "generation", "sha", "hex", "CRC"),
    *("mtime", "LastModified", "last_modified", "modified", "modify", "modificationTime", "created"),
)


class Content(Protocol):
    """The bytes of a range, read in the I/O loop."""

    async def readchunk(self) -> tuple[bytes, bool]:
        """Return the next block that arrived, uncopied, and whether a chunk of HTTP ends; b"" and False at the end."""


class FilesystemStore:
    """The files below a URI, or the file at it, read through an fsspec filesystem.

    This class alone reads every filesystem that fsspec knows. A subclass adds what fsspec's interface cannot express.
    It sets `_root`, `_uri` and `_must_be_directory` in its constructor, and overrides what it needs of:

    - `_connect`: creates the filesystem with our credentials and timeouts, without retries, with `_options` last; sets
      `credential`. Its own imports of vendors are here.
    - `_find`, `_info`: everything below the root, and one path, as fsspec describes them.
    - `_describe`: size, version and digests of one file.
    - `_open_range`: the response of the filesystem's own session, pinned to the listed version.
    - `own_error`: failures that mean something else than their status or type.
    - `_disconnect`: closes the connections.

    These are coroutines in fsspec's I/O loop, so they await the coroutines of an asynchronous filesystem directly, and
    send anything that blocks to `in_thread`. They raise what their client raises; it is translated here.
    """

    is_fixed = False

    remedy = "check storage.options"
    """What to do if the credential is not sufficient."""

    def __init__(self, uri: str, settings: GlobalStorageConfig, options: Options = NO_OPTIONS) -> None:
        self.credential = "storage.options" if options else "none"
        self._given_uri = uri
        self._uri = re.sub(r"(?<![:/])/+$", "", redact(uri))
        self._root = self._prefix = ""
        self._must_be_directory = uri.endswith("/")
        self._settings = settings
        self._options = options
        self._filesystem: Any = None  # Any: each filesystem has its own coroutines
        self._idle: list[Any] = []
        self._connecting = asyncio.Lock()

    async def list(self) -> Listing:
        return await in_io_loop(self._list())

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        opened = AsyncExitStack()
        try:
            content = await in_io_loop(self._enter_range(opened, file, start, end))
            yield _StreamBody(self, self._resource(file), content, end - start)
        finally:
            await in_io_loop(opened.aclose())

    async def close(self) -> None:
        if self._filesystem is not None:
            await in_io_loop(self._disconnect())

    @contextmanager
    def translate_errors(self, resource: str) -> Iterator[None]:
        """Raise what a filesystem raises as an error of ours; `resource` names what was requested."""
        try:
            yield
        except ApplianceError:
            raise
        except Exception as error:  # a client may raise anything
            raise errors.to_storage_error(resource, error, self) from error

    def own_error(self, _resource: str, _error: BaseException, _response: FailedResponse | None) -> StorageError | None:
        """Return the error for a cause with a meaning of its own; None for the meaning of its status or type."""
        return None

    async def _connect(self) -> Any:  # Any: as above
        filesystem, root = await in_thread(fsspec.url_to_fs, self._given_uri, skip_instance_cache=True, **self._options)
        self._root = root.rstrip("/")
        return filesystem

    async def _disconnect(self) -> None:
        self._idle.clear()

    async def _find(self) -> Mapping[str, Info]:
        found: Mapping[str, Info] = await self._call("find", self._root, detail=True)
        return found

    async def _info(self, path: str) -> Info:
        info: Info = await self._call("info", path)
        return info

    async def _describe(self, _path: str, name: str, info: Info) -> RemoteFile:
        version = next((info[field] for field in _VERSION_FIELDS if info.get(field)), None)
        # A listing and a look at one file may have different types of it.
        version = version.timestamp() if isinstance(version, datetime) else version
        return RemoteFile(name, info["size"], None if version is None else str(version))

    @asynccontextmanager
    async def _open_range(self, path: str, file: RemoteFile, start: int, end: int) -> AsyncIterator[Content]:
        yield _Parts(self, path, file, start, end)

    async def _check_version(self, path: str, file: RemoteFile) -> None:
        """Look at a file again, because no request can ask for the listed version only."""
        if await self._describe(path, file.name, await self._info(path)) != file:
            raise errors.changed_error(self._resource(file))

    async def _read_part(self, path: str, start: int, end: int) -> bytes:
        # Otherwise a file reads ahead, and throws away what the next part requests again.
        is_default = type(self._filesystem).cat_file is AbstractFileSystem.cat_file
        more = {"cache_type": "none"} if is_default else {}
        part: bytes = await self._call("cat_file", path, start=start, end=end, **more)
        return part

    def _resource(self, file: RemoteFile) -> str:
        return f"{self._uri}: {file.name}"

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:  # Any: as above
        """Return the result of a method, in a thread if the filesystem has no coroutines."""
        if isinstance(self._filesystem, AsyncFileSystem):
            return await getattr(self._filesystem, f"_{method}")(*args, **kwargs)
        return await self._in_thread(methodcaller(method, *args, **kwargs))

    async def _in_thread(self, work: Callable[[Any], Result]) -> Result:
        """Return the result of `work`, which gets an instance of the filesystem for itself.

        Most filesystems without coroutines have one connection, for one thread. After an error it may be broken, or
        still in use.
        """
        filesystem = self._idle.pop() if self._idle else await self._connect()
        result = await in_thread(work, filesystem)
        self._idle.append(filesystem)
        return result

    async def _open(self) -> None:
        async with self._connecting:
            if self._filesystem is None:
                try:
                    self._filesystem = await self._connect()
                except ImportError as error:
                    raise MissingPackageError(f"{self._uri}: {error}") from error
                except TypeError as error:
                    raise StorageError(f"{self._uri}: {errors.clean(str(error))}; check storage.options") from error
                self._idle.append(self._filesystem)

    async def _enter_range(self, opened: AsyncExitStack, file: RemoteFile, start: int, end: int) -> Content:
        with self.translate_errors(self._resource(file)):
            await self._open()
            return await opened.enter_async_context(self._open_range(self._prefix + file.name, file, start, end))

    async def _list(self) -> Listing:
        reason: StorageError = ArtifactNotFoundError(f"{self._uri}: nothing found; check the path")
        try:
            with self.translate_errors(self._uri):
                await self._open()
                found = await self._find()
        except AccessDeniedError as denied:
            # Some credentials may read a file and list nothing.
            found, reason = {}, denied
        # Archives have no `/` before the names at their root.
        self._prefix = "" if not self._root and not any(path.startswith("/") for path in found) else f"{self._root}/"
        files = {path: info for path, info in found.items() if path.startswith(self._prefix) and _is_file(path, info)}
        is_file = not files
        if is_file:
            if self._must_be_directory:
                raise reason
            files = {self._root: found.get(self._root) or await self._look(reason)}
            self._prefix = self._root[: self._root.rfind("/") + 1]
        return Listing(self._uri, tuple(await gather(self._described, sorted(files.items()))), is_file=is_file)

    async def _look(self, reason: StorageError) -> Info:
        """Return what the root is if it is a file; `reason` is why nothing was found below it."""
        try:
            with self.translate_errors(self._uri):
                info = await self._info(self._root)
        except (ArtifactNotFoundError, AccessDeniedError) as error:
            raise reason from error
        if not _is_file(self._root, info):
            raise reason
        return info

    async def _described(self, entry: tuple[str, Info]) -> RemoteFile:
        path, info = entry
        name = path.removeprefix(self._prefix)
        with self.translate_errors(f"{self._uri}: {name}"):
            return await self._describe(path, name, info)


class _StreamBody:
    """A body whose blocks arrive in the I/O loop; it must have exactly `size` bytes."""

    def __init__(self, store: FilesystemStore, resource: str, content: Content, size: int) -> None:
        self._store = store
        self._resource = resource
        self._content = content
        self._left = size
        self._blocks: deque[bytes] = deque()
        self._is_aborted = False
        self._reading: Future[None] | None = None

    def read(self, size: int, /) -> bytes:
        if not self._left:
            return b""
        if not self._blocks:
            self._wait()
        block = self._blocks.popleft()
        if len(block) > size:
            self._blocks.appendleft(block[size:])
            block = block[:size]
        self._left -= len(block)
        if self._left < 0 or (self._left and not block):
            problem = f"ends {self._left:,} bytes early" if self._left > 0 else "is longer than requested"
            raise StorageUnavailableError(
                f"{self._resource}: the response {problem}; try again, or check proxies on the way"
            )
        return block

    def abort(self) -> None:
        self._is_aborted = True
        if self._reading is not None:
            self._reading.cancel()

    def _wait(self) -> None:
        self._reading = asyncio.run_coroutine_threadsafe(self._receive(), get_loop())
        if self._is_aborted:
            self._reading.cancel()
        try:
            self._reading.result()
        except CancelledError:
            raise StorageUnavailableError(f"{self._resource}: aborted; try again") from None

    async def _receive(self) -> None:
        """Receive blocks until there are enough, or for a moment: to wake a thread costs more than a block."""
        wanted, end = min(_HANDOVER_BYTES, self._left), time.monotonic() + _HANDOVER_SECONDS
        try:
            while wanted > 0 and (not self._blocks or time.monotonic() < end):
                with self._store.translate_errors(self._resource):
                    block, ends_chunk = await self._content.readchunk()
                if block or not ends_chunk:
                    self._blocks.append(block)
                # At the end there is nothing to wait for.
                wanted = wanted - len(block) if block or ends_chunk else 0
        except StorageError:
            # What arrived before is good; the next attempt fails again.
            if not self._blocks:
                raise


class _Parts:
    """A range that is requested part by part, because the filesystem returns what is requested as a whole."""

    def __init__(self, store: FilesystemStore, path: str, file: RemoteFile, start: int, end: int) -> None:
        self._store, self._path, self._file = store, path, file
        self._position, self._end = start, end

    async def readchunk(self) -> tuple[bytes, bool]:
        if self._position >= self._end:
            return b"", False
        part_end = min(self._position + _PART_BYTES, self._end)
        part = await self._store._read_part(self._path, self._position, part_end)
        self._position += len(part)
        if self._position >= self._end:
            await self._store._check_version(self._path, self._file)
        return part, False


def require_package(package: str, extra: str, purpose: str) -> None:
    """Check that the package of a filesystem is installed, without importing it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra, purpose)


def require_known_options(filesystem: type, options: Mapping[str, Any]) -> None:
    """Check that a filesystem has these options; some ignore what they do not know."""
    makers = [vars(kind)["__init__"] for kind in filesystem.__mro__ if "__init__" in vars(kind)]
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    for name in options.keys() - known:
        hint = did_you_mean(name, known) or f"see the arguments of {filesystem.__name__}"
        raise StorageError(f"storage.options: {filesystem.__name__} has no {name!r}; {hint}")


def bucket_and_path(uri: str, bucket_pattern: str) -> tuple[str, str]:
    """Parse `SCHEME://BUCKET/PATH`; the path is a key without any escapes, and has no `/` at its ends."""
    scheme, _, rest = uri.partition("://")
    bucket, _, path = rest.partition("/")
    if not re.fullmatch(bucket_pattern, bucket):
        raise StorageError(f"{redact(uri)}: names no bucket; write {scheme}://BUCKET/PREFIX")
    return bucket, path.strip("/")


async def in_io_loop(work: Coroutine[None, None, Result]) -> Result:
    """Return the result of a coroutine in fsspec's I/O loop; cancelling this cancels it there."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, get_loop()))


async def gather(request: Callable[[Item], Awaitable[Result]], items: Iterable[Item]) -> list[Result]:
    """Return the results for all items, with bounded concurrency; the first error cancels the others."""
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def run_one(item: Item) -> Result:
        async with slots:
            return await request(item)

    tasks = [asyncio.ensure_future(run_one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _is_file(path: str, info: Info) -> bool:
    # Consoles of object stores create empty objects for directories, whose names end with `/`.
    return info["type"] == "file" and not path.endswith("/")
