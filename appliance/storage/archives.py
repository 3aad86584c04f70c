"""Extraction of zip and tar archives that may be malicious: wheels, zip, tar, tar.gz, tar.zst."""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

import zstandard

from appliance.core.disk import OnProgress, ignore_progress, require_free_space, translate_disk_errors
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.core.suggestions import did_you_mean
from appliance.storage.path_safety import name_conflict, name_error

_ZIPS = (".zip", ".whl")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
_UNPACKED = (".zip", *_TARS)

_BLOCK_BYTES = 1 << 20

# tarfile reads a long name or attribute into memory whole; no honest one is longer than this.
_MAX_HEADER_BYTES = 1 << 20
_HEADER_TYPES = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)

# The window of `zstd --long=27`, the largest that zstd itself accepts by default.
_ZSTD_WINDOW_BYTES = 1 << 27

# Members of an image's layer that remove files of earlier layers.
_WHITEOUT = ".wh."
_OPAQUE_WHITEOUT = ".wh..wh..opq"

_ZIP_ENCRYPTED = 0x1

# APPNOTE.TXT 4.3.16: the end of central directory record, before a comment of at most 65,535 bytes.
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES = 22
_ZIP_MAX_COMMENT_BYTES = 0xFFFF

# Most bytes of the central directory for each member: 46 bytes, its name, its extra fields.
_ZIP_ENTRY_BYTES = 320


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits against archive bombs; `ratio` is unpacked to packed bytes, checked above `min_ratio_bytes` unpacked."""

    files: int = 100_000
    size: int = 8 << 40
    ratio: int = 100
    min_ratio_bytes: int = 256 << 20


DEFAULT_LIMITS = ArchiveLimits()


def is_archive(name: str) -> bool:
    """Return whether a single file of this name is unpacked; a wheel is not, because `pypi://` fetches wheels."""
    return name.lower().endswith(_UNPACKED)


def root_of(files: Path) -> Path:
    """Return where a model begins in an unpacked archive: its only top-level directory, or `files` itself."""
    entries = list(files.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else files


def extract(
    archive: Path,
    inside: str,
    target: Path,
    on_progress: OnProgress = ignore_progress,
    limits: ArchiveLimits = DEFAULT_LIMITS,
) -> None:
    """Extract the file or directory `inside`, "" for everything, to the same relative path below `target`.

    One unsafe member rejects the archive. A zip is checked before anything is written; a tar is read once, so the
    caller discards what was written before the unsafe member.

    Raises:
        ArtifactNotFoundError: the archive does not contain `inside`.
        ArtifactCorruptError: the archive is broken or unsafe, or exceeds `limits`.
    """
    name = archive.name.lower()
    if not name.endswith((*_ZIPS, *_TARS)):
        raise StorageError(f"{archive.name}: not a known archive; known are {', '.join(_UNPACKED)}")
    members = _Members(archive, limits)
    prefix = f"{inside}/" if inside else ""
    is_empty = True
    with closing((_read_zip if name.endswith(_ZIPS) else _read_tar)(archive, members)) as found:
        for path, blocks in found:
            if f"{path}/".startswith(prefix):
                # At the first file, a zip has told of all others.
                sizes = (size for other, size in members.sizes.items() if f"{other}/".startswith(prefix))
                require_free_space(sum(sizes) if is_empty else members.sizes[path], target)
                is_empty = False
                _write(blocks, target / path, on_progress)
    if is_empty:
        raise members.missing_error(inside)


def extract_layer(
    archive: Path,
    inside: str,
    target: Path,
    on_progress: OnProgress = ignore_progress,
    limits: ArchiveLimits = DEFAULT_LIMITS,
) -> None:
    """Apply a layer of a container image to `target`: the files below `inside`, by their names relative to it.

    Members elsewhere are skipped. A whiteout removes what earlier layers wrote
    (https://github.com/opencontainers/image-spec/blob/main/layer.md).

    Raises:
        ArtifactCorruptError: the archive is broken or unsafe, or exceeds `limits`.
    """
    members = _Members(archive, limits)
    with closing(_tar_members(archive, members)) as found:
        for member, blocks in found:
            path = PurePosixPath(member.name.lstrip("/"))
            if path.name.startswith(_WHITEOUT):
                _apply_whiteout(members, path, inside, target)
            elif path.is_relative_to(inside) and (
                name := _add_tar_member(members, member, str(path.relative_to(inside)))
            ):
                require_free_space(member.size, target)
                _remove(target / name)
                _write(blocks, target / name, on_progress)


class _Members:
    """The regular files of an archive with their sizes; every name is checked when it is added."""

    def __init__(self, archive: Path, limits: ArchiveLimits) -> None:
        self.sizes: dict[str, int] = {}
        self._archive = archive
        self._packed = archive.stat().st_size
        self._total = 0
        self._limits = limits

    def add(self, name: str, size: int) -> str:
        """Add a file, and return its name as a path below the target."""
        path = self.check_name(name)
        if path in self.sizes:
            raise self.error(f"has two members {path!r}")
        self._total += size
        self.check_size(self._total)
        self.sizes[path] = size
        return path

    def check_count(self, count: int) -> None:
        """Check that so many members of any kind are within the limits."""
        if count > self._limits.files:
            raise self.error(f"has more than {self._limits.files:,} members")

    def check_name(self, name: str, problem: str | None = None) -> str:
        """Return the name of a file or directory as a path; `problem` is what is already known to be wrong with it."""
        if problem := problem or name_error(name):
            raise self.error(f"the member {name!r} {problem}")
        return str(PurePosixPath(name))

    def check_size(self, unpacked: int) -> None:
        """Check that so many unpacked bytes are within the limits."""
        limits = self._limits
        if unpacked > limits.size:
            raise self.error(f"unpacks to more than {limits.size:,} bytes")
        if unpacked > max(limits.min_ratio_bytes, self._packed * limits.ratio):
            raise self.error(f"unpacks to more than {limits.ratio} times its {self._packed:,} bytes")

    def check_conflicts(self) -> None:
        """Check all names together."""
        if conflict := name_conflict(self.sizes):
            raise self.error(conflict)

    def missing_error(self, inside: str) -> ArtifactNotFoundError:
        """Return the error for a path that the archive does not contain."""
        if not self.sizes:
            return ArtifactNotFoundError(f"{self._archive.name}: has no files")
        paths = {*self.sizes, *(str(parent) for name in self.sizes for parent in PurePosixPath(name).parents[:-1])}
        largest = sorted(self.sizes, key=lambda name: self.sizes[name], reverse=True)[:3]
        hint = did_you_mean(inside, paths) or f"its largest files are {', '.join(map(repr, largest))}"
        return ArtifactNotFoundError(f"{self._archive.name}: has no {inside!r}; {hint}")

    def error(self, problem: str) -> ArtifactCorruptError:
        """Return the error that rejects the archive."""
        return ArtifactCorruptError(f"{self._archive.name}: {problem}; it is refused")


def _write(blocks: Iterator[bytes], path: Path, on_progress: OnProgress) -> None:
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    with file:
        for block in blocks:
            with translate_disk_errors(path):
                file.write(block)
                # Flushed here, so that closing the file cannot raise an untranslated error of a full disk.
                file.flush()
            on_progress(0, None)


def _read_zip(archive: Path, members: _Members) -> Generator[tuple[str, Iterator[bytes]]]:
    """Yield the path and contents of each file, after a check of all members."""
    with _translate_errors(archive):
        _check_zip_directory(archive, members)
        opened = zipfile.ZipFile(archive)
    with opened:
        members.check_count(len(opened.infolist()))
        files = {}
        for member in opened.infolist():
            members.check_name(member.orig_filename, _zip_problem(member))
            if not member.is_dir():
                files[members.add(member.filename, member.file_size)] = member
        members.check_conflicts()
        for path, member in files.items():
            # zipfile checks the CRC at the end.
            yield path, _read_blocks(archive, partial(opened.open, member), member.filename, member.file_size)


def _check_zip_directory(archive: Path, members: _Members) -> None:
    """Check the size of the central directory, which zipfile reads whole.

    The field of zip64 archives with a longer one has the largest number there is, and fails too.
    """
    with archive.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - _ZIP_END_BYTES - _ZIP_MAX_COMMENT_BYTES))
        tail = file.read()
    end = tail.rfind(_ZIP_END)
    size = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    members.check_count(size // _ZIP_ENTRY_BYTES)


def _zip_problem(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    # zipfile cuts `filename` at a NUL, so the original name is checked.
    return "is encrypted" if member.flag_bits & _ZIP_ENCRYPTED else name_error(member.orig_filename)


def _read_tar(archive: Path, members: _Members) -> Generator[tuple[str, Iterator[bytes]]]:
    """Yield the path and contents of each file, which must be read before the next file, or never."""
    with closing(_tar_members(archive, members)) as found:
        for member, blocks in found:
            if path := _add_tar_member(members, member, member.name):
                yield path, blocks
    members.check_conflicts()


def _tar_members(archive: Path, members: _Members) -> Generator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
    """Yield each member, checked by nothing but their number, with its contents as above."""
    with _translate_errors(archive), _decompress(archive) as packed:
        stream = _CountingReader(packed, members.check_size)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_StrictTarInfo) as opened:
            for number, member in enumerate(opened, start=1):
                members.check_count(number)
                # Only links have no contents, and they are refused.
                open_member = cast("Callable[[], IO[bytes]]", partial(opened.extractfile, member))
                yield member, _read_blocks(archive, open_member, member.name, member.size)
        stream.read_to_end()


def _read_blocks(archive: Path, open_member: Callable[[], IO[bytes]], name: str, size: int) -> Iterator[bytes]:
    done = 0
    with _translate_errors(archive), open_member() as source:
        while block := source.read(_BLOCK_BYTES):
            done += len(block)
            yield block
        if done != size:
            raise EOFError(f"{name} has {done} bytes and should have {size}")


@contextmanager
def _translate_errors(archive: Path) -> Iterator[None]:
    """Raise what the libraries raise for a broken archive as an error of ours."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, zstandard.ZstdError),
        *(EOFError, OSError, RuntimeError, ValueError),
    ) as error:
        kind = "zip" if archive.name.lower().endswith(_ZIPS) else "tar"
        raise ArtifactCorruptError(f"{archive.name}: not a sound {kind} archive: {error}; fetch it again") from error


def _add_tar_member(members: _Members, member: tarfile.TarInfo, name: str) -> str | None:
    """Return the checked name of a file; None for a directory, which is created with the first file in it."""
    if member.isdir():
        # `tar -C DIR .` begins with the directory itself.
        if name != ".":
            members.check_name(name)
        return None
    if not member.isreg() or member.issparse():
        raise members.error(f"the member {name!r} is a link, a device or sparse")
    return members.add(name, member.size)


def _apply_whiteout(members: _Members, whiteout: PurePosixPath, inside: str, target: Path) -> None:
    """Remove the file or directory that a whiteout names, or what earlier layers wrote to its directory."""
    name = whiteout.name.removeprefix(_WHITEOUT)
    if not name:
        raise members.error(f"the member {str(whiteout)!r} names nothing to remove")
    hidden = whiteout.parent if whiteout.name == _OPAQUE_WHITEOUT else whiteout.parent / name
    if PurePosixPath(inside).is_relative_to(hidden):
        path = target
    elif hidden.is_relative_to(inside):
        path = target / members.check_name(str(hidden.relative_to(inside)))
    else:
        return
    for file in [path, *path.rglob("*")]:
        if file.is_file() and file.relative_to(target).as_posix() not in members.sizes:
            _remove(file)


def _remove(path: Path) -> None:
    with translate_disk_errors(path):
        path.unlink(missing_ok=True)


class _StrictTarInfo(tarfile.TarInfo):
    """A header that raises when it is broken, and when tarfile would read gigabytes for a name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # tarfile takes any broken header but the first for the end of the archive, which is zeros or nothing.
            if any(buf):
                raise tarfile.ReadError(f"{error}") from error
            raise
        if header.size < 0 or (header.type in _HEADER_TYPES and header.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _CountingReader:
    """Counts unpacked bytes, so that a bomb is noticed in time, and keeps the last block of the archive."""

    def __init__(self, source: _Readable, check_size: Callable[[int], None]) -> None:
        self._source = source
        self._check_size = check_size
        self._count = 0
        self._last = b""

    def read(self, size: int) -> bytes:
        block = self._source.read(size)
        self._count += len(block)
        self._check_size(self._count)
        if block:
            self._last = (self._last + block[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return block

    def read_to_end(self) -> None:
        """Read the end, where gzip and zstd have checksums and tar has blocks of zeros (POSIX pax, "ustar")."""
        while self.read(_BLOCK_BYTES):
            pass
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")


@contextmanager
def _decompress(archive: Path) -> Iterator[_Readable]:
    name = archive.name.lower()
    with archive.open("rb") as file:
        if name.endswith("gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        elif name.endswith("zst"):
            decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
            with decompressor.stream_reader(file, read_across_frames=True) as reader:
                yield reader
        else:
            yield file
