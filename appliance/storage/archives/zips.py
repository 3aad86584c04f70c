"""Zip archives, wheels among them."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance.core.errors import ArtifactCorruptError
from appliance.storage import path_safety
from appliance.storage.archives.limits import BLOCK, Limits, Members, is_wanted, require_some, write
from appliance.storage.disk_errors import check_room

_ENCRYPTED = 0x1

# APPNOTE.TXT 4.3.16: the end of central directory record, before a comment of at most 65,535 bytes.
_END = b"PK\x05\x06"
_END_SIZE = 22
_LONGEST_COMMENT = 0xFFFF

# What the directory may hold for each file that may be there: 46 bytes, its name, its extra fields.
_ENTRY_BYTES = 320


def extract(archive: Path, inside: str, target: Path, tick: Callable[[], None], limits: Limits) -> None:
    """Unpack a zip archive; every member is checked before anything is written."""
    with _broken_zips(archive):
        _require_short_directory(archive, limits)
        opened = zipfile.ZipFile(archive)
    with opened:
        members = _members(archive, opened, limits)
        wanted = {name: member for name, member in members.items() if is_wanted(name, inside)}
        require_some(archive, inside, wanted, {name: member.file_size for name, member in members.items()})
        check_room(sum(member.file_size for member in wanted.values()), target)
        for name, member in wanted.items():
            write(_blocks(archive, opened, member), target / name, tick)


def _require_short_directory(archive: Path, limits: Limits) -> None:
    """Return when the directory, which zipfile reads whole, is of a size that so many files could need.

    A longer one of zip64 says so too: its short form is then the largest number there is.
    """
    with archive.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - _END_SIZE - _LONGEST_COMMENT))
        tail = file.read()
    end = tail.rfind(_END)
    size = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    if size > limits.files * _ENTRY_BYTES:
        raise ArtifactCorruptError(f"{archive.name}: has more than {limits.files:,} members; it is refused")


def _members(archive: Path, opened: zipfile.ZipFile, limits: Limits) -> Mapping[str, zipfile.ZipInfo]:
    """The regular files of an archive by their checked names."""
    members = Members(archive, limits)
    found: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        members.count()
        members.check(member.orig_filename, _fault(member))
        if not member.is_dir():
            found[members.add(member.filename, member.file_size)] = member
    members.close()
    return found


def _fault(member: zipfile.ZipInfo) -> str | None:
    """
    What is wrong with a member, or None; zipfile's own `filename` is already cut at a NUL, so the original is judged.
    """
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return "is encrypted" if member.flag_bits & _ENCRYPTED else path_safety.fault(member.orig_filename)


def _blocks(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The contents of a member, whose CRC zipfile checks at the end."""
    size = 0
    with _broken_zips(archive), opened.open(member) as source:
        while block := source.read(BLOCK):
            size += len(block)
            yield block
        if size != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename} has {size} bytes where {member.file_size} were promised")


@contextmanager
def _broken_zips(archive: Path) -> Iterator[None]:
    """Translate what zipfile and its decompressors raise on bytes that are not what they should be."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ArtifactCorruptError(f"{archive.name}: not a sound zip archive: {error}; fetch it again") from error
