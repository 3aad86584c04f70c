"""
Which files of a repository are fetched, and whether those that came are the ones it lists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.nearest import did_you_mean
from appliance.storage import names
from appliance.storage.faults import disk_faults

# Only safetensors are loaded: pickles can run code when they are read, and the rest is for other programs.
_OTHER_WEIGHTS = frozenset({".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth"})
_OTHER_COPIES = ("onnx/", "original/")

# A layer of a Sentence Transformers model, such as `2_Dense`; small, often only pickled, and vLLM takes it so.
_LAYER = re.compile(r"\d+_\w+/[^/]+\.bin")

# Bookkeeping of git, and of huggingface_hub in the directory that it fills.
_BOOKKEEPING = (".gitattributes", ".cache/huggingface/")


@dataclass(frozen=True, slots=True)
class Listed:
    """
    A file as a repository lists it: git's digest of its blob, and for a large file its own SHA-256, both in hex.
    """

    name: str
    size: int
    blob: str
    sha256: str | None = None


def select(what: str, files: Sequence[Listed], path: str) -> list[Listed]:
    """
    The files to fetch for `path`, which is one file, a directory, or "" for all of the repository.

    Every name is checked: one bad name condemns the repository.

    Raises:
        ArtifactNotFoundError: the repository does not have it.
        ArtifactCorruptError: a file would land elsewhere.
        StorageError: there are weights, and none that can be loaded.
    """
    for file in files:
        if fault := names.fault(file.name):
            raise ArtifactCorruptError(f"{what}: the file {file.name!r} {fault}; the model is refused")
    for file in files:
        if file.name == path:
            return [file]
    prefix = f"{path}/" if path else ""
    below = {file.name.removeprefix(prefix): file for file in files if file.name.startswith(prefix)}
    if not below:
        raise ArtifactNotFoundError(f"{what}: {_absent(path, files)}")
    _require_safetensors(what, below)
    return [file for name, file in below.items() if not _is_left_out(name)]


def verify(what: str, files: Collection[Listed], directory: Path) -> None:
    """
    Read every byte again: what fetches compares sizes at most.

    Raises:
        ArtifactCorruptError: a file is missing, or not the one that is listed.
    """
    with ThreadPoolExecutor(max_workers=4) as pool:
        sound = list(pool.map(lambda file: _is_sound(file, directory / file.name), files))
    damaged = [file.name for file, is_sound in zip(files, sound, strict=True) if not is_sound]
    if damaged:
        raise ArtifactCorruptError(
            f"{what}: {', '.join(damaged[:5])}: not the bytes that the hub lists; "
            "try again, and ask whoever keeps the hub, mirror or proxy if it stays so"
        )


def _absent(path: str, files: Sequence[Listed]) -> str:
    if not files:
        return "the model has no files; check the name and the revision"
    paths = {file.name for file in files} | {
        str(above) for file in files for above in PurePosixPath(file.name).parents[:-1]
    }
    largest = sorted(files, key=lambda file: file.size, reverse=True)[:3]
    hint = did_you_mean(path, paths) or f"its largest files are {', '.join(file.name for file in largest)}"
    return f"has no {path!r}; {hint}"


def _require_safetensors(what: str, below: Collection[str]) -> None:
    weights = sorted(name for name in below if _is_other_weights(name))
    if not weights or any(name.endswith(".safetensors") for name in below):
        return
    if ggufs := [name for name in weights if name.endswith(".gguf")]:
        raise StorageError(f"{what}: has GGUF files and no safetensors; write which: {_listing(ggufs)}")
    raise StorageError(f"{what}: has no safetensors, only {_listing(weights)}; choose a model that has them")


def _listing(names: Sequence[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")


def _is_left_out(name: str) -> bool:
    return name.startswith((*_OTHER_COPIES, *_BOOKKEEPING)) or _is_other_weights(name)


def _is_other_weights(name: str) -> bool:
    return PurePosixPath(name).suffix in _OTHER_WEIGHTS and not _LAYER.fullmatch(name)


def _is_sound(file: Listed, path: Path) -> bool:
    with disk_faults(path):
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        with path.open("rb") as stream:
            if file.sha256:
                return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
            # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects: a header, then the contents.
            state = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
            return hashlib.file_digest(stream, lambda: state).hexdigest() == file.blob
