"""Tar archives, plain or packed with gzip or zstd, read once from front to back."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Protocol, cast

import zstandard

from appliance.core.errors import ArtifactCorruptError
from appliance.storage.archives.limits import BLOCK, Limits, Members, is_wanted, require_some, write
from appliance.storage.disk_errors import check_room

# A longer name or attribute is nobody's: tarfile reads either into memory whole.
_LONGEST_HEADER = 1 << 20
_HEADERS = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)

# The window of `zstd --long=27`, the most that zstd itself takes unless told otherwise.
_ZSTD_WINDOW = 1 << 27


def extract(archive: Path, inside: str, target: Path, tick: Callable[[], None], limits: Limits) -> None:
    """Unpack a tar archive, member after member."""
    members = Members(archive, limits)
    wanted = []
    with closing(_read(archive, members)) as files:
        for name, blocks in files:
            if is_wanted(name, inside):
                wanted.append(name)
                check_room(members.sizes[name], target)
                write(blocks, target / name, tick)
    members.close()
    require_some(archive, inside, wanted, members.sizes)


def _read(archive: Path, members: Members) -> Generator[tuple[str, Iterator[bytes]]]:
    """Each file with its contents, which must be read before the next is asked for, or never."""
    with _broken_tars(archive), _unpacked(archive) as packed:
        stream = _Metered(packed, members.require)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_Header) as opened:
            for member in opened:
                if name := _add(members, member):
                    yield name, _blocks(archive, opened, member)
        stream.finish()


def _add(members: Members, member: tarfile.TarInfo) -> str | None:
    """The checked name of a file; None for a directory, which is made when a file lies in it."""
    members.count()
    if member.isdir():
        # `tar -C DIR .` begins with the directory itself.
        if member.name != ".":
            members.check(member.name)
        return None
    if not member.isreg() or member.issparse():
        raise members.refusal(f"the member {member.name!r} is a link, a device or sparse")
    return members.add(member.name, member.size)


def _blocks(archive: Path, opened: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    with _broken_tars(archive):
        source = opened.extractfile(member)
        if source is None:
            raise tarfile.ReadError(f"{member.name} cannot be read")
        while block := source.read(BLOCK):
            yield block


class _Header(tarfile.TarInfo):
    """A header that is never passed over when it is broken, and does not make tarfile read gigabytes for a name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # tarfile takes any broken header but the first for the end of the archive, which is zeros or nothing.
            if any(buf):
                raise tarfile.ReadError(f"{error}") from error
            raise
        if header.size < 0 or (header.type in _HEADERS and header.size > _LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Metered:
    """Counts what is unpacked, so that a bomb is found while it goes off, and remembers how the archive ended."""

    def __init__(self, source: _Readable, require: Callable[[int], None]) -> None:
        self._source = source
        self._require = require
        self._count = 0
        self._last = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes more."""
        block = self._source.read(size)
        self._count += len(block)
        self._require(self._count)
        if block:
            self._last = (self._last + block[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return block

    def finish(self) -> None:
        """
        Read to the end, where gzip and zstd have their checksums and tar has blocks of zeros (POSIX pax, "ustar").
        """
        while self.read(BLOCK):
            pass
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")


@contextmanager
def _unpacked(archive: Path) -> Iterator[_Readable]:
    name = archive.name.lower()
    with archive.open("rb") as file:
        if name.endswith(("gz", "zst")):
            reader = gzip.GzipFile(fileobj=file) if name.endswith("gz") else _zstd(file)
            with reader:
                yield reader
        else:
            yield file


def _zstd(file: IO[bytes]) -> zstandard.ZstdDecompressionReader:
    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    return unpacker.stream_reader(file, read_across_frames=True)


@contextmanager
def _broken_tars(archive: Path) -> Iterator[None]:
    """Translate what tarfile and the decompressors raise on bytes that are not what they should be."""
    try:
        yield
    except (tarfile.TarError, zlib.error, zstandard.ZstdError, EOFError, OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{archive.name}: not a sound tar archive: {error}; fetch it again") from error
