"""Which files of a place are fetched, which are left out, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import structlog

from appliance.config.storage import StorageConfig
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.storage import path_safety
from appliance.storage.filesystems.base import Listing, RemoteFile

log = structlog.get_logger()

# Python's pickles by their usual endings: reading one can run any code.
PICKLES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})

# Weights for other programs.
_OTHER_WEIGHTS = frozenset({".gguf", ".h5", ".keras", ".msgpack", ".onnx", ".ot", ".tflite"})

# Directories with copies of the same weights, for other programs.
_OTHER_COPIES = ("onnx/", "original/", "openvino/", "coreml/")

# Bookkeeping of git, and of huggingface_hub in the directory that it fills.
_BOOKKEEPING = (".git/", ".gitattributes", ".gitignore", ".cache/huggingface/")

# A layer of a Sentence Transformers model, such as `2_Dense`; small, often only pickled, and vLLM reads it with an
# unpickler that takes nothing but tensors.
_LAYER = re.compile(r"\d+_\w+/[^/]+\.bin")


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to fetch, in the order of the listing, and for each other name why it is left out."""

    files: tuple[RemoteFile, ...]
    left_out: Mapping[str, str]


def select(listing: Listing, storage: StorageConfig) -> tuple[RemoteFile, ...]:
    """The files to fetch; what is left out is logged.

    Raises:
        StorageError: as in `sort_out`.
    """
    selection = sort_out(listing, storage)
    if selection.left_out:
        reasons = sorted(set(selection.left_out.values()))
        log.info("artifact.selected", uri=listing.place, left_out=len(selection.left_out), reasons=reasons)
    return selection.files


def sort_out(listing: Listing, storage: StorageConfig) -> Selection:
    """Tell the files of a place apart; every name is checked, and one bad name condemns the place.

    What `exclude` matches is left out; what `include` matches is taken, and then nothing else is; without `include`,
    what only other programs load is left out.

    Raises:
        ArtifactNotFoundError: there is none.
        ArtifactCorruptError: a file would lie elsewhere, or where another does.
        StorageError: there are weights, and none that may be loaded.
    """
    _require_good_names(listing)
    left_out = {file.name: "stands for a directory" for file in listing.files if file.name.endswith("/")}
    if not listing.is_file:
        rest = [file.name for file in listing.files if file.name not in left_out]
        left_out |= _left_out(listing.place, rest, storage)
    files = tuple(file for file in listing.files if file.name not in left_out)
    chosen = [file.name for file in files]
    if not files:
        raise ArtifactNotFoundError(f"{listing.place}: {_nothing(listing, storage)}")
    if clash := path_safety.clash(chosen):
        raise ArtifactCorruptError(f"{listing.place}: {clash}; leave one of them out with exclude")
    _require_no_pickles(listing.place, chosen, storage)
    return Selection(files, left_out)


def is_pickle(name: str) -> bool:
    """Whether reading a file of this name could run code."""
    return _suffix(name) in PICKLES and not _LAYER.fullmatch(name)


def _require_good_names(listing: Listing) -> None:
    for file in listing.files:
        # What S3's console makes for a directory.
        is_marker = file.name.endswith("/") and file.size == 0
        bare = file.name.removesuffix("/") if is_marker else file.name
        fault = path_safety.fault(bare)
        if not fault and str(PurePosixPath(bare)) != bare:
            fault = "has an empty part in its name"
        if fault:
            raise ArtifactCorruptError(f"{listing.place}: the file {file.name!r} {fault}; the model is refused")


def _left_out(place: str, given: Collection[str], storage: StorageConfig) -> dict[str, str]:
    excluded = {name: "exclude names it" for name in given if _matches(name, storage.exclude)}
    rest = [name for name in given if name not in excluded]
    if storage.include:
        others = {name: "include does not name it" for name in rest if not _matches(name, storage.include)}
    else:
        others = _others(place, rest, storage)
    return excluded | others


def _others(place: str, given: Sequence[str], storage: StorageConfig) -> dict[str, str]:
    """What nobody here would load: copies of the weights in other formats, and bookkeeping."""
    rows: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("is bookkeeping of git or the hub", lambda name: name.startswith(_BOOKKEEPING)),
        ("is a copy for other programs", lambda name: name.startswith(_OTHER_COPIES)),
        ("is the same weights as the safetensors beside it", _is_other_weights),
    )
    if not any(name.endswith(".safetensors") for name in given):
        _require_loadable(place, given, storage)
        rows = rows[:1]
    return {name: reason for reason, fits in reversed(rows) for name in given if fits(name)}


def _require_loadable(place: str, given: Sequence[str], storage: StorageConfig) -> None:
    """Return when files without safetensors among them are worth fetching."""
    weights = sorted(name for name in given if _is_other_weights(name))
    if ggufs := [name for name in weights if name.endswith(".gguf")]:
        raise StorageError(f"{place}: has GGUF files and no safetensors; write which: {_listed(ggufs)}")
    if others := [name for name in weights if not is_pickle(name)]:
        raise StorageError(
            f"{place}: has no safetensors, only {_listed(weights)}; choose a model that has them, "
            f"or name what you want under include: {_listed(others)}"
        )
    _require_no_pickles(place, given, storage)


def _require_no_pickles(place: str, given: Sequence[str], storage: StorageConfig) -> None:
    pickles = [name for name in given if is_pickle(name)]
    if pickles and not storage.allow_pickle:
        raise StorageError(
            f"{place}: {_listed(pickles)}: pickled, and could run code when read; choose a model that has "
            "safetensors, or set allow_pickle: true in its storage if you trust whoever made it"
        )


def _nothing(listing: Listing, storage: StorageConfig) -> str:
    if not listing.files:
        return "nothing lies there; check the path"
    largest = sorted(listing.files, key=lambda file: file.size, reverse=True)[:3]
    which = "exclude leaves nothing" if storage.exclude and not storage.include else "include matches nothing"
    return f"{which} of its {len(listing.files)} files; the largest are {', '.join(file.name for file in largest)}"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, f"{glob}*" if glob.endswith("/") else glob) for glob in patterns)


def _is_other_weights(name: str) -> bool:
    return is_pickle(name) or _suffix(name) in _OTHER_WEIGHTS


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _listed(given: Sequence[str]) -> str:
    more = len(given) - 5
    return ", ".join(given[:5]) + (f" and {more} more" if more > 0 else "")
