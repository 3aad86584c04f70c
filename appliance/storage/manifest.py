"""The completion marker of an artifact: every file with its size and digest, written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.core.errors import ArtifactCorruptError
from appliance.storage import bounded_json
from appliance.storage.disk_errors import disk_faults

FILES = "files"
"""Directory of an artifact that holds its files."""

# A million files.
_MOST_BYTES = 256 * 1024 * 1024

MARKER = "appliance-manifest.json"
"""File beside it that says they are all there."""

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One file: its size in bytes, and its digest in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact holds; `files` has relative names with `/`, in order."""

    source: str
    files: Mapping[str, ManifestEntry]

    @property
    def digest(self) -> str:
        """One digest over all names, sizes and digests."""
        listing = json.dumps([[name, entry.size, entry.sha256] for name, entry in self.files.items()])
        return hashlib.sha256(listing.encode()).hexdigest()

    def damage(self, files: Path) -> list[str]:
        """Names that are missing from the directory or have another size: a cheap look, for every use."""
        return [name for name, entry in self.files.items() if _size(files / name) != entry.size]

    def altered(self, files: Path, tick: Callable[[], None]) -> list[str]:
        """Names of files with other bytes than they had: every byte is read, and `tick` called now and then."""
        return [name for name, entry in self.files.items() if _sha256(files / name, tick) != entry.sha256]


def size_of(files: Path) -> int:
    """Bytes of all files in a directory."""
    with disk_faults(files):
        return sum((files / name).stat().st_size for name in _names(files))


def seal(artifact: Path, source: str, known: Mapping[str, str], tick: Callable[[], None]) -> None:
    """Bring everything under `artifact` safely to the disk, and last the marker that says so.

    `known` has the SHA-256 of files that were read and synced already. `tick` is called now and then, and may raise to
    stop.
    """
    files = artifact / FILES
    manifest = Manifest(source, {name: _settle(files / name, files, known.get(name), tick) for name in _names(files)})
    for directory, _, _ in os.walk(files, topdown=False):
        sync_directory(Path(directory))
    text = json.dumps({**asdict(manifest), "digest": manifest.digest}, indent=1)
    with disk_faults(artifact / MARKER), (artifact / MARKER).open("xb") as marker:
        marker.write(text.encode())
        marker.flush()
        os.fsync(marker)
    sync_directory(artifact)


def read(artifact: Path) -> Manifest | None:
    """The manifest of a complete artifact, or None when there is none or it is not as it was written."""
    try:
        data = bounded_json.read(artifact / MARKER, _MOST_BYTES)
        manifest = Manifest(data["source"], {name: ManifestEntry(**entry) for name, entry in data["files"].items()})
        return manifest if manifest.digest == data["digest"] else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def digest(path: Path) -> str | None:
    """The SHA-256 of a file that lies in the cache, from its manifest; None for any other path."""
    artifact, manifest = artifact_of(path) or (path, None)
    entry = manifest.files.get(path.relative_to(artifact / FILES).as_posix()) if manifest else None
    return entry.sha256 if entry else None


def verify(path: Path, tick: Callable[[], None] = lambda: None) -> None:
    """Read every byte of the artifact that `path` lies in again; a path outside the cache has no promise to break.

    `tick` is called now and then, and may raise to stop.

    Raises:
        ArtifactCorruptError: a file is missing, or not the one that was stored.
    """
    artifact, manifest = artifact_of(path) or (path, None)
    if manifest is None:
        return
    files = artifact / FILES
    if damaged := manifest.damage(files) or manifest.altered(files, tick):
        raise ArtifactCorruptError(
            f"{artifact}: {', '.join(damaged[:5])}: not as it was stored; remove it, to be fetched again, with: "
            "appliance cache verify --remove"
        )


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    with disk_faults(directory):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def artifact_of(path: Path) -> tuple[Path, Manifest] | None:
    """The complete artifact that `path` lies in, and its manifest; None for a path outside the cache."""
    for directory in (path, *path.parents):
        if directory.name == FILES and (manifest := read(directory.parent)):
            return directory.parent, manifest
    return None


def _names(files: Path) -> list[str]:
    return sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if not path.is_dir())


def _settle(path: Path, files: Path, known: str | None, tick: Callable[[], None]) -> ManifestEntry:
    """Take the digest of one file and sync it, unless that was done."""
    sha256 = known or _sha256(path, tick)
    with disk_faults(path), path.open("rb") as file:
        facts = os.fstat(file.fileno())
        # Writers such as safetensors make private files; the directory has the mode this user's umask asks for.
        wanted = files.stat().st_mode & 0o666
        if facts.st_mode & 0o777 != wanted:
            os.fchmod(file.fileno(), wanted)
        if known is None:
            os.fsync(file)
        return ManifestEntry(facts.st_size, sha256)


def _sha256(path: Path, tick: Callable[[], None]) -> str:
    state = hashlib.sha256()
    for block in _blocks(path):
        state.update(block)
        tick()
    return state.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with disk_faults(path), path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            yield block


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
