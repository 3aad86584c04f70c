"""Memory that workers share: what each of them says about itself, readable by all."""

from __future__ import annotations

import mmap
import struct
import zlib

# Pages that nobody touches cost nothing.
_HALF = 8 * 1024 * 1024

# Serial number, length and checksum of what a half holds.
_HEAD = struct.Struct("<QII")

# Both halves of a slot can be written anew while one reader copies; not over and over.
_TRIES = 10


class SharedSlots:
    """A slot for each worker, in memory that forked processes share; a slot has one writer and many readers.

    What was said stays when its writer dies. It needs no file, so it works where nothing is writable.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, count * 2 * _HALF)

    def write(self, number: int, said: bytes) -> None:
        """Put `said` in the place of what the slot held.

        Raises:
            ValueError: it is larger than a slot.
        """
        if len(said) > _HALF - _HEAD.size:
            raise ValueError(f"{len(said)} bytes do not fit into a slot of {_HALF}")
        # The older half: whoever reads the newer one is not disturbed, and dying in the middle loses nothing.
        newer, older = self._newest_first(number)
        place = self._place(number, older)
        self._memory[place + _HEAD.size : place + _HEAD.size + len(said)] = said
        serial = self._head(number, newer)[0] + 1
        _HEAD.pack_into(self._memory, place, serial, len(said), _checksum(serial, said))

    def read(self, number: int) -> bytes | None:
        """What the slot holds, or None when nothing was ever said."""
        for _ in range(_TRIES):
            for half in self._newest_first(number):
                serial, length, checksum = self._head(number, half)
                start = self._place(number, half) + _HEAD.size
                said = self._memory[start : start + length]
                if serial and _checksum(serial, said) == checksum:
                    return said
        return None

    def _newest_first(self, number: int) -> list[int]:
        return sorted((0, 1), key=lambda half: self._head(number, half)[0], reverse=True)

    def _head(self, number: int, half: int) -> tuple[int, int, int]:
        serial, length, checksum = _HEAD.unpack_from(self._memory, self._place(number, half))
        return serial, min(length, _HALF - _HEAD.size), checksum

    def _place(self, number: int, half: int) -> int:
        return (2 * number + half) * _HALF


def _checksum(serial: int, said: bytes) -> int:
    # Of the serial number too: a head is not written in one piece either.
    return zlib.crc32(said, zlib.crc32(serial.to_bytes(8, "little")) ^ len(said))
