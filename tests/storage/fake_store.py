"""A store at the contract, that fails as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from appliance.core.errors import AccessDeniedError, ArtifactChangedError, StorageUnavailableError
from appliance.storage.filesystems.base import Body, Listing, RemoteFile

BLOCK = 16 * 1024

Kind = Literal["none", "reset", "end", "stall", "flip", "more", "deny", "changed", "busy", "slow"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What one read does once it has brought `after` bytes."""

    kind: Kind = "none"
    after: int = 0


def sha256(data: bytes) -> Mapping[str, str]:
    """The digest that most stores have."""
    return {"sha256": hashlib.sha256(data).hexdigest()}


@dataclass
class FakeStore:
    """Files in memory; `faults` are used up one by each read, and then `always` holds."""

    files: MutableMapping[str, bytes]
    digests: Callable[[bytes], Mapping[str, str]] = sha256
    has_versions: bool = True
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault = Fault()
    listing_faults: deque[Fault] = field(default_factory=deque)
    requested: list[tuple[str, int, int]] = field(default_factory=list)
    sent_bytes: int = 0
    running: int = 0
    max_running: int = 0
    is_closed: bool = False
    credential: str = "none"
    is_fixed: bool = False

    async def list(self) -> Listing:
        fault = self.listing_faults.popleft() if self.listing_faults else Fault()
        if fault.kind == "stall":
            await asyncio.sleep(3600)
        fail(fault)
        return Listing("fake://model", tuple(self._describe(name, data) for name, data in self.files.items()))

    def read(self, file: RemoteFile, start: int, end: int) -> AbstractAsyncContextManager[Body]:
        return self._read(file, start, end)

    @asynccontextmanager
    async def _read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        self.requested.append((file.name, start, end))
        fault = self.faults.popleft() if self.faults else self.always
        self.running += 1
        self.max_running = max(self.running, self.max_running)
        try:
            yield _Blocks(self, self.files[file.name], start, end, fault)
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.is_closed = True

    def _describe(self, name: str, data: bytes) -> RemoteFile:
        version = hashlib.sha1(data, usedforsecurity=False).hexdigest() if self.has_versions else None
        return RemoteFile(name, len(data), version, self.digests(data))


class _Blocks:
    """The bytes of one read, with what befalls them."""

    def __init__(self, store: FakeStore, data: bytes, start: int, end: int, fault: Fault) -> None:
        self._store = store
        self._fault = fault
        self._blocks = self._all(data, start, end)
        self._aborted = threading.Event()
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        block = self._rest or next(self._blocks, b"")
        block, self._rest = block[:size], block[size:]
        self._store.sent_bytes += len(block)
        return block

    def abort(self) -> None:
        self._aborted.set()

    def _all(self, data: bytes, start: int, end: int) -> Iterator[bytes]:
        kind, breaks = self._fault.kind, start + self._fault.after
        for begin in range(start, end, BLOCK):
            stop = min(begin + BLOCK, end)
            if kind == "slow":
                time.sleep(0.02)
            if kind not in ("none", "slow") and begin <= breaks < stop:
                if begin < breaks:
                    yield data[begin:breaks]
                if kind == "end":
                    return
                if kind == "stall":
                    self._aborted.wait()
                fail(self._fault)
                flipped = data[breaks] ^ (0xFF if kind == "flip" else 0)
                yield bytes([flipped]) + data[breaks + 1 : stop]
            else:
                yield data[begin:stop]
        if kind == "more":
            yield b"more"


def fail(fault: Fault) -> None:
    """Raise what a fault raises."""
    match fault.kind:
        case "reset" | "stall":
            raise StorageUnavailableError("fake: the connection was reset")
        case "busy":
            raise StorageUnavailableError("fake: busy", retry_after=0.5)
        case "deny":
            raise AccessDeniedError("fake: not for you")
        case "changed":
            raise ArtifactChangedError("fake: changed")
