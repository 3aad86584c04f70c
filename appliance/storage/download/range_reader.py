"""Reading of ranges of a store's files, resumed from the last byte when a connection breaks or stalls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack

from appliance.config.storage import TransferConfig
from appliance.core.concurrency import start
from appliance.core.errors import ArtifactCorruptError, StorageUnavailableError
from appliance.storage.download.journal import ByteRange
from appliance.storage.download.retry import Backoff, StallError
from appliance.storage.filesystems.base import Body, RemoteFile, Store

Write = Callable[[int, bytes], None]
"""Writes the bytes at an offset of a file, in the thread that receives them."""

# The memory of one request. A larger block would not stay in the processor's cache from the network to the disk.
_MAX_BLOCK_BYTES = 256 * 1024


class RangeReader:
    """Reads the files of one store in blocks; `fetched` counts all bytes that arrived."""

    def __init__(self, store: Store, uri: str, config: TransferConfig, piece_bytes: int) -> None:
        self.fetched = 0
        self._store = store
        self._uri = uri
        self._config = config
        self._block_bytes = min(piece_bytes, _MAX_BLOCK_BYTES)

    def describe(self, file: RemoteFile) -> str:
        """Return the name of a file for messages."""
        return f"{self._uri}: {file.name}"

    async def copy(
        self, file: RemoteFile, span: ByteRange, open_target: Callable[[], AbstractContextManager[Write]]
    ) -> None:
        """Write all bytes of a range to the target, in order; a failed request is repeated from its last byte."""
        position, backoff = span.start, Backoff(self._config)
        while position < span.end:
            copy = _RangeCopy(self.describe(file), ByteRange(position, span.end), self._block_bytes, open_target)
            try:
                await self._request(copy, file)
            except StorageUnavailableError as error:
                if copy.position > position:
                    backoff.reset()
                await backoff.wait(error)
            finally:
                self.fetched += copy.position - position
                position = copy.position

    async def _request(self, copy: _RangeCopy, file: RemoteFile) -> None:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._config.stall_seconds):
                    response = self._store.read(file, copy.position, copy.end)
                    body = await stack.enter_async_context(response)
            except TimeoutError as error:
                raise StallError(copy.description, self._config) from error
            running = asyncio.wrap_future(start(copy.run, body))
            try:
                await self._wait(running, copy)
            finally:
                # The thread must not write to the file or use the connection after this.
                if not running.done():
                    body.abort()
                    await asyncio.wait({running})
                # Retrieved, because asyncio logs an exception that nobody retrieves.
                running.exception()
            running.result()

    async def _wait(self, running: asyncio.Future[None], copy: _RangeCopy) -> None:
        while not running.done():
            left = self._config.stall_seconds - copy.stalled_seconds
            if left <= 0:
                raise StallError(copy.description, self._config)
            await asyncio.wait({running}, timeout=left)


class _RangeCopy:
    """Copies one response to its target; everything before `position` is written."""

    def __init__(
        self,
        description: str,
        span: ByteRange,
        block_bytes: int,
        open_target: Callable[[], AbstractContextManager[Write]],
    ) -> None:
        self.description = description
        self.position, self.end = span.start, span.end
        self._block_bytes = block_bytes
        self._open_target = open_target
        self._read_started: float | None = None

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the current read began; time spent on a slow disk does not count."""
        started = self._read_started
        return 0 if started is None else time.monotonic() - started

    def run(self, body: Body) -> None:
        """Copy the whole body."""
        with self._open_target() as write:
            while block := self._read(body):
                if len(block) > self.end - self.position:
                    raise ArtifactCorruptError(f"{self.description}: the store sent more bytes than requested")
                write(self.position, block)
                self.position += len(block)
        if self.position < self.end:
            raise StorageUnavailableError(
                f"{self.description}: the response ended at byte {self.position:,}; check proxies on the way"
            )

    def _read(self, body: Body) -> bytes:
        self._read_started = time.monotonic()
        try:
            return body.read(self._block_bytes)
        finally:
            self._read_started = None
