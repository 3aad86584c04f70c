"""The journal of a download: which bytes of which file are on the disk, so that a killed download can be resumed.

A line is written after its bytes. The kernel keeps both when the process is killed and may lose either on a power cut,
so each line has a checksum, and the bytes are read and compared before a line is believed. That is cheaper than a sync
for each piece, and finds a damaged disk as well.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from appliance.core.disk import translate_disk_errors
from appliance.storage.download.checksums import crc_algorithm
from appliance.storage.filesystems.base import RemoteFile

JOURNAL = "appliance-journal.jsonl"
"""File of an artifact, finished or not, with its journal."""


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """The bytes from `start` up to `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start

    def split(self, size: int) -> Iterator[ByteRange]:
        """Yield consecutive ranges of at most `size` bytes."""
        return (ByteRange(start, min(start + size, self.end)) for start in range(self.start, self.end, size))


@dataclass(frozen=True, slots=True)
class CompletedRange:
    """A range of a file that was written, with the checksum of its bytes."""

    span: ByteRange
    crc: int


def missing_ranges(completed: Iterable[ByteRange], size: int) -> Iterator[ByteRange]:
    """Yield the ranges of a file of `size` bytes that are not in `completed`, which is sorted and without overlap."""
    position = 0
    for completed_range in chain(completed, (ByteRange(size, size),)):
        if completed_range.start > position:
            yield ByteRange(position, completed_range.start)
        position = completed_range.end


class Journal:
    """The journal of one artifact; opened by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._out: BinaryIO | None = None

    def completed(self) -> Mapping[str, list[CompletedRange]]:
        """Return the recorded ranges by the `version_id` of their files; an incomplete line is ignored."""
        found: dict[str, list[CompletedRange]] = defaultdict(list)
        for line in self._lines():
            try:
                version, start, end, crc = json.loads(line)
                if 0 <= int(start) < int(end):
                    found[str(version)].append(CompletedRange(ByteRange(int(start), int(end)), int(crc)))
            except (ValueError, TypeError):
                continue
        return found

    def restart(self, confirmed: Iterable[tuple[str | None, CompletedRange]]) -> None:
        """Rewrite the journal with the ranges that were confirmed, and open it for more."""
        fresh = self._path.with_suffix(".new")
        with translate_disk_errors(self._path):
            fresh.write_bytes(b"".join(_line(version, completed) for version, completed in confirmed))
            fresh.replace(self._path)
            # Unbuffered, because a buffer is lost with the process.
            self._out = self._path.open("ab", buffering=0)

    def record(self, version: str | None, completed: CompletedRange) -> None:
        """Record that a range is on the disk; callable from any thread."""
        assert self._out is not None, "recorded before restart; this is a bug"  # noqa: S101
        with translate_disk_errors(self._path):
            self._out.write(_line(version, completed))

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            self._out.close()

    def _lines(self) -> list[bytes]:
        try:
            with translate_disk_errors(self._path.parent):
                return self._path.read_bytes().splitlines() if self._path.exists() else []
        finally:
            self._path.with_suffix(".new").unlink(missing_ok=True)


def version_id(file: RemoteFile) -> str | None:
    """Return what identifies a file in this version, since bytes of different versions must never be joined.

    It includes the checksum algorithm of the journal. None if the store has neither versions nor digests; such a
    download cannot be resumed.
    """
    if not file.version and not file.digests:
        return None
    identity = [crc_algorithm(), file.name, file.size, file.version, sorted(file.digests.items())]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _line(version: str | None, completed: CompletedRange) -> bytes:
    if not version:
        return b""
    return json.dumps([version, completed.span.start, completed.span.end, completed.crc]).encode() + b"\n"
