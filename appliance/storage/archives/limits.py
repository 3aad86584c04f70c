"""What every member of every kind of archive must be, and how one is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError
from appliance.core.suggestions import did_you_mean
from appliance.storage import path_safety
from appliance.storage.disk_errors import disk_faults

BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The most an archive may hold before it is taken for a bomb.

    `ratio` is bytes unpacked for each byte packed; it counts above `harmless` bytes, below which any ratio does.
    """

    files: int = 100_000
    size: int = 8 << 40
    ratio: int = 100
    harmless: int = 256 << 20

    def fault(self, packed: int, unpacked: int) -> str | None:
        """What is wrong with unpacking so many bytes from so many, or None."""
        if unpacked > self.size:
            return f"unpacks to more than {self.size:,} bytes"
        if unpacked > max(self.harmless, packed * self.ratio):
            return f"unpacks to more than {self.ratio} times its {packed:,} bytes"
        return None


LIMITS = Limits()


class Members:
    """The regular files of an archive as they are met: checked names and their sizes."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.sizes: dict[str, int] = {}
        self._archive = archive
        self._packed = archive.stat().st_size
        self._total = self._count = 0
        self._limits = limits

    def add(self, name: str, size: int) -> str:
        """Take in one more file, and return its name as a path below the target.

        Raises:
            ArtifactCorruptError: it would lie elsewhere, is there already, or is too much.
        """
        clean = self.check(name)
        if clean in self.sizes:
            raise self.refusal(f"has two members {clean!r}")
        self._total += size
        self.require(self._total)
        self.sizes[clean] = size
        return clean

    def count(self) -> None:
        """Take note of one more member, of whatever kind."""
        self._count += 1
        if self._count > self._limits.files:
            raise self.refusal(f"has more than {self._limits.files:,} members")

    def check(self, name: str, fault: str | None = None) -> str:
        """The name of a file or directory as a path; `fault` is what is already known to be wrong with it."""
        if fault := fault or path_safety.fault(name):
            raise self.refusal(f"the member {name!r} {fault}")
        return str(PurePosixPath(name))

    def require(self, unpacked: int) -> None:
        """Return when so many bytes are no bomb."""
        if fault := self._limits.fault(self._packed, unpacked):
            raise self.refusal(fault)

    def close(self) -> None:
        """Check what only all names together show."""
        if clash := path_safety.clash(self.sizes):
            raise self.refusal(clash)

    def refusal(self, fault: str) -> ArtifactCorruptError:
        """The error that condemns the archive."""
        return ArtifactCorruptError(f"{self._archive.name}: {fault}; it is refused")


def is_wanted(name: str, inside: str) -> bool:
    """Whether a member is the file `inside`, or lies in the directory of that name; "" is everything."""
    return f"{name}/".startswith(f"{inside}/" if inside else "")


def require_some(archive: Path, inside: str, wanted: Collection[str], sizes: Mapping[str, int]) -> None:
    """Return when anything was wanted out of what there is.

    Raises:
        ArtifactNotFoundError: nothing, with what comes near it.
    """
    if wanted:
        return
    if not sizes:
        raise ArtifactNotFoundError(f"{archive.name}: has no files")
    paths = {*sizes, *(str(above) for name in sizes for above in PurePosixPath(name).parents[:-1])}
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:3]
    hint = did_you_mean(inside, paths) or f"its largest files are {', '.join(map(repr, largest))}"
    raise ArtifactNotFoundError(f"{archive.name}: has no {inside!r}; {hint}")


def write(blocks: Iterator[bytes], path: Path, tick: Callable[[], None]) -> None:
    """Make one new file of a member's bytes."""
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
