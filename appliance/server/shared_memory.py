"""Shared memory with one slot for each worker, which every worker can read."""

from __future__ import annotations

import mmap
import struct
import zlib

# Pages that are never written cost nothing.
_HALF = 8 * 1024 * 1024

# Serial number, length and checksum of the content of a half.
_HEADER = struct.Struct("<QII")

# Both halves of a slot can be written while a reader copies one, but not repeatedly.
_ATTEMPTS = 10


class SharedSlots:
    """A slot for each worker, in memory that forked processes share; it has one writer and many readers.

    The content stays when its writer dies. It needs no file, so it works on a read-only file system.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, count * 2 * _HALF)

    def write(self, number: int, content: bytes) -> None:
        """Replace the content of a slot.

        Raises:
            ValueError: it is larger than a slot.
        """
        if len(content) > _HALF - _HEADER.size:
            raise ValueError(f"{len(content)} bytes do not fit into a slot of {_HALF}")
        # The older half: readers of the newer one are not disturbed, and death in the middle loses nothing.
        newer, older = self._newest_first(number)
        offset = self._offset(number, older)
        self._memory[offset + _HEADER.size : offset + _HEADER.size + len(content)] = content
        serial = self._header(number, newer)[0] + 1
        _HEADER.pack_into(self._memory, offset, serial, len(content), _checksum(serial, content))

    def read(self, number: int) -> bytes | None:
        """Return the content of a slot; None if it was never written."""
        for _ in range(_ATTEMPTS):
            for half in self._newest_first(number):
                serial, length, checksum = self._header(number, half)
                start = self._offset(number, half) + _HEADER.size
                content = self._memory[start : start + length]
                if serial and _checksum(serial, content) == checksum:
                    return content
        return None

    def _newest_first(self, number: int) -> list[int]:
        return sorted((0, 1), key=lambda half: self._header(number, half)[0], reverse=True)

    def _header(self, number: int, half: int) -> tuple[int, int, int]:
        serial, length, checksum = _HEADER.unpack_from(self._memory, self._offset(number, half))
        return serial, min(length, _HALF - _HEADER.size), checksum

    def _offset(self, number: int, half: int) -> int:
        return (2 * number + half) * _HALF


def _checksum(serial: int, content: bytes) -> int:
    # Of the serial number too: a header is not written in one step either.
    return zlib.crc32(content, zlib.crc32(serial.to_bytes(8, "little")) ^ len(content))
