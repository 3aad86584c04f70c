"""Which bytes of which file are on the disk, kept beside them, so that a fetch that was killed goes on where it was.

A line is written once its bytes are. The kernel keeps both when the process is killed and may lose either when the
power goes, so each line carries a checksum and is a claim: whoever continues reads the bytes before it believes it.
That is cheaper than a sync for each piece, and holds against a damaged disk, too.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.storage.disk_errors import disk_faults
from appliance.storage.download.crc import algorithm
from appliance.storage.download.ranges import ByteRange
from appliance.storage.filesystems.base import RemoteFile

NAME = "appliance-journal.jsonl"
"""File of an artifact, finished or not, that holds its journal."""


@dataclass(frozen=True, slots=True)
class CompletedRange:
    """A span of a file that was written, with the checksum of its bytes."""

    span: ByteRange
    crc: int


class Journal:
    """The journal of one artifact; opened by one process at a time, closed by whoever opened it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._out: BinaryIO | None = None

    def claims(self) -> Mapping[str, list[CompletedRange]]:
        """What is said to be there, by the `mark` of its file; a line that was not written to its end says nothing."""
        claims: dict[str, list[CompletedRange]] = defaultdict(list)
        for line in self._lines():
            try:
                mark, start, end, crc = json.loads(line)
                if 0 <= int(start) < int(end):
                    claims[str(mark)].append(CompletedRange(ByteRange(int(start), int(end)), int(crc)))
            except (ValueError, TypeError):
                continue
        return claims

    def begin(self, kept: Iterable[tuple[str | None, CompletedRange]]) -> None:
        """Start anew with what was found to be true, and be ready for more."""
        fresh = self._path.with_suffix(".new")
        with disk_faults(self._path):
            fresh.write_bytes(b"".join(_line(mark, piece) for mark, piece in kept))
            fresh.replace(self._path)
            # Unbuffered, because what sits in a buffer dies with the process.
            self._out = self._path.open("ab", buffering=0)

    def note(self, mark: str | None, piece: CompletedRange) -> None:
        """Say that a piece is on the disk; any thread may."""
        assert self._out is not None, "noted before it was begun; this is a bug"  # noqa: S101
        with disk_faults(self._path):
            self._out.write(_line(mark, piece))

    def close(self) -> None:
        """Let go of the file."""
        if self._out is not None:
            self._out.close()

    def _lines(self) -> list[bytes]:
        try:
            with disk_faults(self._path.parent):
                return self._path.read_bytes().splitlines() if self._path.exists() else []
        finally:
            self._path.with_suffix(".new").unlink(missing_ok=True)


def mark(file: RemoteFile) -> str | None:
    """What tells a file in this state from all others: bytes of another version must never be joined to it.

    It tells the checksum that is used, too. Where the store has neither versions nor digests nothing tells files apart,
    and its fetch cannot be continued.
    """
    if not file.version and not file.digests:
        return None
    identity = [algorithm(), file.name, file.size, file.version, sorted(file.digests.items())]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _line(mark: str | None, piece: CompletedRange) -> bytes:
    # Of a file without a mark there is nothing to claim.
    return json.dumps([mark, piece.span.start, piece.span.end, piece.crc]).encode() + b"\n" if mark else b""
