"""
Take files out of an archive that may have been made by an enemy.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from appliance.errors import ArtifactCorruptError, ArtifactNotFoundError
from appliance.nearest import did_you_mean
from appliance.storage import names
from appliance.storage.faults import check_room, disk_faults

_BLOCK = 1 << 20
_ENCRYPTED = 0x1


def extract(archive: Path, inside: str, target: Path, tick: Callable[[], None]) -> None:
    """
    Take the file or directory `inside` out of a zip archive, or all of it for "", keeping its place below `target`.

    Every member's name is checked before anything is written: one bad name condemns the archive.

    Raises:
        ArtifactNotFoundError: the archive does not have it.
        ArtifactCorruptError: the archive is broken, or tries to write elsewhere.
    """
    with _broken_zips(archive):
        opened = zipfile.ZipFile(archive)
    with opened:
        wanted = _select(_members(archive, opened), inside, archive)
        check_room(sum(member.file_size for member in wanted.values()), target)
        for name, member in wanted.items():
            _write(_blocks(archive, opened, member), target / name, tick)


def _members(archive: Path, opened: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """
    The regular files of an archive by their checked names.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        if fault := _fault(member):
            raise ArtifactCorruptError(f"{archive.name}: the member {member.orig_filename!r} {fault}; it is refused")
        name = str(PurePosixPath(member.filename))
        if member.is_dir():
            continue
        if name in members:
            raise ArtifactCorruptError(f"{archive.name}: has two members {name!r}; it is refused")
        members[name] = member
    for name in members:
        if clash := next((str(above) for above in PurePosixPath(name).parents if str(above) in members), None):
            raise ArtifactCorruptError(f"{archive.name}: {clash!r} is both a file and a directory; it is refused")
    return members


def _fault(member: zipfile.ZipInfo) -> str | None:
    """
    What is wrong with a member, or None; zipfile's own `filename` is already cut at a NUL, so the original is judged.
    """
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return "is encrypted" if member.flag_bits & _ENCRYPTED else names.fault(member.orig_filename)


def _select(members: Mapping[str, zipfile.ZipInfo], inside: str, archive: Path) -> Mapping[str, zipfile.ZipInfo]:
    wanted = {name: member for name, member in members.items() if f"{name}/".startswith(f"{inside}/" if inside else "")}
    if not wanted:
        paths = {*members, *(str(above) for name in members for above in PurePosixPath(name).parents[:-1])}
        largest = sorted(members, key=lambda name: members[name].file_size, reverse=True)[:3]
        hint = did_you_mean(inside, paths) or f"its largest files are {', '.join(map(repr, largest))}"
        raise ArtifactNotFoundError(f"{archive.name}: has no {inside!r}; {hint}")
    return wanted


def _write(blocks: Iterator[bytes], path: Path, tick: Callable[[], None]) -> None:
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    with file:
        for block in blocks:
            with disk_faults(path):
                file.write(block)
                # Nothing may be left for closing the file, where a full disk would go untranslated.
                file.flush()
            tick()


def _blocks(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """
    The contents of a member, whose CRC zipfile checks at the end.
    """
    size = 0
    with _broken_zips(archive), opened.open(member) as source:
        while block := source.read(_BLOCK):
            size += len(block)
            yield block
        if size != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename} has {size} bytes where {member.file_size} were promised")


@contextmanager
def _broken_zips(archive: Path) -> Iterator[None]:
    """
    Translate what zipfile and its decompressors raise on bytes that are not what they should be.
    """
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ArtifactCorruptError(f"{archive.name}: not a sound zip archive: {error}; fetch it again") from error
