"""Read ranges of a store's files, whatever breaks on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack

from appliance.config.storage import TransferConfig
from appliance.core.errors import ArtifactCorruptError, StorageUnavailableError
from appliance.core.threads import start
from appliance.storage.download.ranges import ByteRange
from appliance.storage.download.retry import Backoff, silence
from appliance.storage.filesystems.base import Body, RemoteFile, Store

Take = Callable[[int, bytes], None]
"""
Takes the bytes at an offset of a file, in the thread that receives them.
"""

# All that a request holds in memory. More would not stay in a processor's own memory from the network to the disk.
_LARGEST_BLOCK = 256 * 1024


class RangeReader:
    """One store's files, read in blocks of at most `piece` bytes; `fetched` counts all bytes that came."""

    def __init__(self, store: Store, place: str, limits: TransferConfig, piece: int) -> None:
        self.fetched = 0
        self._store = store
        self._place = place
        self._limits = limits
        self._block = min(piece, _LARGEST_BLOCK)

    def what(self, file: RemoteFile) -> str:
        """The file as messages name it."""
        return f"{self._place}: {file.name}"

    async def bring(self, file: RemoteFile, span: ByteRange, into: Callable[[], AbstractContextManager[Take]]) -> None:
        """Give `into` all bytes of a span, in order; a request that breaks is made again from its last byte on.

        Raises:
            StorageError: the store refuses it, or went on failing.
        """
        at, patience = span.start, Backoff(self._limits)
        while at < span.end:
            flow = _Flow(self.what(file), ByteRange(at, span.end), self._block, into)
            try:
                await self._run(flow, file)
            except StorageUnavailableError as error:
                # What came before the fault is as good as the rest.
                if flow.at > at:
                    patience.renew()
                await patience.pause(error)
            finally:
                self.fetched += flow.at - at
                at = flow.at

    async def _run(self, flow: _Flow, file: RemoteFile) -> None:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._limits.stall_seconds):
                    answer = self._store.read(file, flow.at, flow.end)
                    body = await stack.enter_async_context(answer)
            except TimeoutError as error:
                raise silence(self.what(file), self._limits) from error
            running = asyncio.wrap_future(start(flow.run, body))
            try:
                await self._attend(running, flow)
            finally:
                # Nobody may write to the file, or use the connection, who is not known any more.
                if not running.done():
                    body.abort()
                    await asyncio.wait({running})
                # Looked at, lest asyncio complains of it when something else is raised.
                running.exception()
            running.result()

    async def _attend(self, running: asyncio.Future[None], flow: _Flow) -> None:
        while not running.done():
            left = self._limits.stall_seconds - flow.waited_seconds
            if left <= 0:
                raise silence(flow.what, self._limits)
            await asyncio.wait({running}, timeout=left)


class _Flow:
    """
    The bytes of one answer on their way to where they belong; `at` is how far they are, and all up to there is safe.
    """

    def __init__(
        self, what: str, span: ByteRange, block: int, into: Callable[[], AbstractContextManager[Take]]
    ) -> None:
        self.what = what
        self.at, self.end = span.start, span.end
        self._block = block
        self._into = into
        self._waits_since: float | None = None

    @property
    def waited_seconds(self) -> float:
        """How long nothing has come by now; a slow disk is not the store's fault."""
        since = self._waits_since
        return 0 if since is None else time.monotonic() - since

    def run(self, body: Body) -> None:
        """Receive all of it."""
        with self._into() as take:
            while block := self._next(body):
                if len(block) > self.end - self.at:
                    raise ArtifactCorruptError(f"{self.what}: the store sent more bytes than it was asked for")
                take(self.at, block)
                self.at += len(block)
        if self.at < self.end:
            raise StorageUnavailableError(
                f"{self.what}: the answer ended at byte {self.at:,}; check proxies on the way"
            )

    def _next(self, body: Body) -> bytes:
        self._waits_since = time.monotonic()
        try:
            return body.read(self._block)
        finally:
            self._waits_since = None
