"""
Read ranges of a store's files, whatever breaks on the way.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from appliance.errors import ArtifactCorruptError, StorageUnavailableError
from appliance.storage.section import TransferSection
from appliance.storage.store import RemoteFile, Store
from appliance.storage.transfer.patience import Patience, steadily
from appliance.storage.transfer.ranges import Span

# What the kernel takes in one call (IOV_MAX); a store with smaller blocks has smaller pieces.
_MOST_BLOCKS = 1024


class Reader:
    """
    One store's files, read in pieces of about `piece` bytes; `fetched` counts all bytes that came.
    """

    def __init__(self, store: Store, place: str, limits: TransferSection, piece: int) -> None:
        self.fetched = 0
        self._store = store
        self._place = place
        self._limits = limits
        self._piece = piece

    def what(self, file: RemoteFile) -> str:
        """
        The file as messages name it.
        """
        return f"{self._place}: {file.name}"

    async def pieces(self, file: RemoteFile, span: Span) -> AsyncGenerator[list[bytes]]:
        """
        All bytes of a span, in pieces of a few blocks; a request that breaks is made again from its last byte on.

        Raises:
            StorageError: the store refuses it, or went on failing.
        """
        at, patience = span.start, Patience(self._limits)
        while at < span.end:
            try:
                async with aclosing(self._once(file, Span(at, span.end))) as pieces:
                    async for piece in pieces:
                        at += size_of(piece)
                        patience.renew()
                        yield piece
                if at < span.end:
                    raise StorageUnavailableError(
                        f"{self.what(file)}: the answer ended at byte {at:,}; check proxies on the way"
                    )
            except StorageUnavailableError as error:
                await patience.pause(error)

    async def _once(self, file: RemoteFile, span: Span) -> AsyncGenerator[list[bytes]]:
        piece: list[bytes] = []
        held, left = 0, span.end - span.start
        try:
            answer = self._store.read(file, span.start, span.end)
            async with aclosing(steadily(answer, self.what(file), self._limits)) as blocks:
                async for block in blocks:
                    piece.append(block)
                    held, left = held + len(block), left - len(block)
                    self.fetched += len(block)
                    if left < 0:
                        raise ArtifactCorruptError(
                            f"{self.what(file)}: the store sent more bytes than it was asked for"
                        )
                    if held >= self._piece or len(piece) == _MOST_BLOCKS:
                        yield piece
                        piece, held = [], 0
        except StorageUnavailableError:
            # What came before the fault is as good as the rest.
            if held:
                yield piece
            raise
        if held:
            yield piece


def size_of(piece: list[bytes]) -> int:
    """
    The bytes of a piece.
    """
    return sum(map(len, piece))
