"""
A store at the contract, that fails as it is told.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Literal

from appliance.errors import AccessDeniedError, ArtifactChangedError, StorageUnavailableError
from appliance.storage.store import Listing, RemoteFile

BLOCK = 16 * 1024

Kind = Literal["none", "reset", "end", "stall", "flip", "more", "deny", "changed", "busy", "slow"]


@dataclass(frozen=True, slots=True)
class Fault:
    """
    What one read does once it has brought `after` bytes.
    """

    kind: Kind = "none"
    after: int = 0


def sha256(data: bytes) -> Mapping[str, str]:
    """
    The digest that most stores have.
    """
    return {"sha256": hashlib.sha256(data).hexdigest()}


@dataclass
class StoreDouble:
    """
    Files in memory; `faults` are used up one by each read, and then `always` holds.
    """

    files: MutableMapping[str, bytes]
    digests: Callable[[bytes], Mapping[str, str]] = sha256
    has_versions: bool = True
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault = Fault()
    listing_faults: deque[Fault] = field(default_factory=deque)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    served: int = 0
    running: int = 0
    most_running: int = 0
    is_closed: bool = False
    credential: str = "none"
    is_fixed: bool = False

    async def list(self) -> Listing:
        fault = self.listing_faults.popleft() if self.listing_faults else Fault()
        await self._fail(fault)
        return Listing("double://model", tuple(self._describe(name, data) for name, data in self.files.items()))

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[bytes]:
        self.asked.append((file.name, start, end))
        fault = self.faults.popleft() if self.faults else self.always
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            async for block in self._blocks(self.files[file.name], start, end, fault):
                self.served += len(block)
                yield block
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.is_closed = True

    def _describe(self, name: str, data: bytes) -> RemoteFile:
        version = hashlib.sha1(data, usedforsecurity=False).hexdigest() if self.has_versions else None
        return RemoteFile(name, len(data), version, self.digests(data))

    async def _blocks(self, data: bytes, start: int, end: int, fault: Fault) -> AsyncIterator[bytes]:
        breaks = start + fault.after
        for begin in range(start, end, BLOCK):
            stop = min(begin + BLOCK, end)
            await asyncio.sleep(0.02 if fault.kind == "slow" else 0)
            if fault.kind not in ("none", "slow") and begin <= breaks < stop:
                yield data[begin:breaks]
                await self._fail(fault)
                if fault.kind == "end":
                    return
                flipped = data[breaks] ^ (0xFF if fault.kind == "flip" else 0)
                yield bytes([flipped]) + data[breaks + 1 : stop]
            else:
                yield data[begin:stop]
        if fault.kind == "more":
            yield b"more"

    async def _fail(self, fault: Fault) -> None:
        match fault.kind:
            case "reset":
                raise StorageUnavailableError("double: the connection was reset")
            case "busy":
                raise StorageUnavailableError("double: busy", retry_after=0.5)
            case "deny":
                raise AccessDeniedError("double: not for you")
            case "changed":
                raise ArtifactChangedError("double: changed")
            case "stall":
                await asyncio.sleep(3600)
