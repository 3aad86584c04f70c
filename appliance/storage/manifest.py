"""The manifest of an artifact: every file with its size and digest, written last.

An artifact is a directory `NAME/files/...` in the cache with the manifest beside `files`. It is complete if the
manifest exists.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.core.disk import OnProgress, ignore_progress, sha256_of, translate_disk_errors
from appliance.core.errors import ArtifactCorruptError
from appliance.storage import bounded_json

FILES = "files"
"""Directory of an artifact that holds its files."""

MARKER = "appliance-manifest.json"
"""Name of the manifest."""

# About a million files.
_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Size in bytes and SHA-256 in hex of one file; the digest is None where it is not known."""

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class FileList:
    """Files by their names relative to a directory: of an artifact, as its manifest has them, or of another path.

    `source` is the canonical URI they were fetched from, or None for files used in place. `is_file` is True if they are
    one file that a URI names, and no directory.
    """

    source: str | None
    files: Mapping[str, FileInfo]
    is_file: bool = False

    @property
    def digest(self) -> str | None:
        """The SHA-256 of a single file, else of all names, sizes and digests; None if that of a file is not known."""
        if any(info.sha256 is None for info in self.files.values()):
            return None
        if self.is_file:
            return next(info.sha256 for info in self.files.values())
        listing = [[name, info.size, info.sha256] for name, info in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def damaged_files(self, directory: Path) -> list[str]:
        """Return the names of files that are missing or have another size; cheap enough for every use."""
        return [name for name, info in self.files.items() if _size_of(directory / name) != info.size]

    def altered_files(self, directory: Path, on_progress: OnProgress) -> list[str]:
        """Return the names of files whose bytes changed, after reading every byte."""
        return [name for name, info in self.files.items() if sha256_of(directory / name, on_progress) != info.sha256]


def write(
    artifact: Path,
    source: str,
    known: Mapping[str, str],
    on_progress: OnProgress,
    verified_by_size_only: Sequence[str] = (),
) -> FileList:
    """Sync every file of an artifact to the disk, and then write its manifest.

    `known` has the SHA-256 of files that are hashed and synced already. `verified_by_size_only` names those whose
    store listed no digest to compare it with; it is for people.
    """
    files = artifact / FILES
    with translate_disk_errors(files):
        names = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if not path.is_dir())
        size = sum((files / name).stat().st_size for name in names)

    def report_complete(_done: int, _total: int | None) -> None:
        on_progress(size, size)

    manifest = FileList(source, {name: _seal(files / name, files, known.get(name), report_complete) for name in names})
    for directory, _, _ in os.walk(files, topdown=False):
        sync_directory(Path(directory))
    infos = {name: asdict(info) for name, info in manifest.files.items()}
    unverified = {"verified_by_size_only": list(verified_by_size_only)} if verified_by_size_only else {}
    text = json.dumps({"source": source, "files": infos, "digest": manifest.digest, **unverified}, indent=1)
    with translate_disk_errors(artifact / MARKER), (artifact / MARKER).open("xb") as marker:
        marker.write(text.encode())
        marker.flush()
        os.fsync(marker)
    sync_directory(artifact)
    return manifest


def read(artifact: Path) -> FileList | None:
    """Return the manifest of a complete artifact, or None if there is none or it was altered."""
    try:
        data = bounded_json.read(artifact / MARKER, _MAX_BYTES)
        manifest = FileList(str(data["source"]), {name: FileInfo(**info) for name, info in data["files"].items()})
        return manifest if manifest.digest == data["digest"] is not None else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def artifact_of(path: Path) -> tuple[Path, FileList] | None:
    """Return the complete artifact that contains `path`, with its manifest; None for a path outside the cache."""
    for directory in (path, *path.parents):
        if directory.name == FILES and (manifest := read(directory.parent)):
            return directory.parent, manifest
    return None


def sha256_in_cache(path: Path) -> str | None:
    """Return the SHA-256 of a file in the cache from its manifest; None for any other path."""
    artifact, manifest = artifact_of(path) or (path, None)
    info = manifest.files.get(path.relative_to(artifact / FILES).as_posix()) if manifest else None
    return info.sha256 if info else None


def verify(path: Path, on_progress: OnProgress = ignore_progress) -> None:
    """Read every byte of the artifact that contains `path`; nothing is known of paths outside the cache.

    Raises:
        ArtifactCorruptError: a file is missing, or not the one that was stored.
    """
    artifact, manifest = artifact_of(path) or (path, None)
    if manifest is None:
        return
    files = artifact / FILES
    if damaged := manifest.damaged_files(files) or manifest.altered_files(files, on_progress):
        raise ArtifactCorruptError(
            f"{artifact}: {', '.join(damaged[:5])}: not as it was stored; remove it, to be fetched again, with: "
            "appliance cache verify --remove"
        )


def list_files(path: Path, on_progress: OnProgress = ignore_progress, *, read_all: bool) -> FileList:
    """Return the files at `path`: from the manifest in the cache, elsewhere from the directory.

    `read_all` reads files outside the cache for their digests.
    """
    artifact, manifest = artifact_of(path) or (path, None)
    if manifest is None:
        return FileList(None, _scan(path, on_progress, read_all=read_all), path.is_file())
    prefix = path.relative_to(artifact / FILES).as_posix()
    files = {
        name.rpartition("/")[2] if name == prefix else name.removeprefix(f"{prefix}/"): info
        for name, info in manifest.files.items()
        if prefix == "." or f"{name}/".startswith(f"{prefix}/")
    }
    return FileList((manifest.source or "").partition("#")[0], files, path.is_file())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    with translate_disk_errors(directory):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _seal(path: Path, files: Path, known: str | None, on_progress: OnProgress) -> FileInfo:
    """Hash and sync one file, unless that was done, and make it readable."""
    sha256 = known or sha256_of(path, on_progress)
    with translate_disk_errors(path), path.open("rb") as file:
        facts = os.fstat(file.fileno())
        # Writers such as safetensors create private files; the directory has the mode of this user's umask.
        mode = files.stat().st_mode & 0o666
        if facts.st_mode & 0o777 != mode:
            os.fchmod(file.fileno(), mode)
        if known is None:
            os.fsync(file)
        return FileInfo(facts.st_size, sha256)


def _scan(path: Path, on_progress: OnProgress, *, read_all: bool) -> Mapping[str, FileInfo]:
    with translate_disk_errors(path):
        found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        sizes = {file: file.stat().st_size for file in found}
    return {
        file.name if file == path else file.relative_to(path).as_posix(): FileInfo(
            size, sha256_of(file, on_progress) if read_all else None
        )
        for file, size in sizes.items()
    }


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
