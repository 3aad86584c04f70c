"""Selection: which files of a listing are fetched, which are left out, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import structlog

from appliance.config.storage import StorageConfig
from appliance.core.disk import translate_disk_errors
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, LoadError, StorageError
from appliance.storage.archives import is_archive
from appliance.storage.filesystems.base import Listing, RemoteFile
from appliance.storage.path_safety import name_conflict, name_error

if TYPE_CHECKING:
    from appliance.config.engine import FrameworkConfig, OnnxEncoderConfig

log = structlog.get_logger()

# Usual suffixes of Python pickles, which can run any code when read.
PICKLES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})

# Weights for other programs.
_OTHER_WEIGHTS = frozenset({".gguf", ".h5", ".keras", ".msgpack", ".onnx", ".ot", ".tflite"})

# Directories with copies of the same weights for other programs.
_OTHER_COPIES = ("onnx/", "original/", "openvino/", "coreml/")

# Metadata of git, and of huggingface_hub in the directory that it fills.
_BOOKKEEPING = (".git/", ".gitattributes", ".gitignore", ".cache/huggingface/")

# A layer of a Sentence Transformers model, such as `2_Dense`: small, often only pickled, and vLLM reads it with an
# unpickler that accepts nothing but tensors.
_LAYER = re.compile(r"\d+_\w+/[^/]+\.bin")


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to fetch, in the order of the listing, and the reason for each name that is left out."""

    files: tuple[RemoteFile, ...]
    left_out: Mapping[str, str]


def select(listing: Listing, storage: StorageConfig) -> Selection:
    """Select the files to fetch; every name is checked, and one unsafe name rejects the listing.

    Files that match `exclude` are left out. With `include`, only files that match it are taken; without it, files that
    only other programs load are left out.

    Raises:
        ArtifactNotFoundError: no file is left.
        ArtifactCorruptError: a file would be written elsewhere, or over another one.
        StorageError: there are weights, and none that may be loaded.
    """
    _check_names(listing)
    left_out = {file.name: "stands for a directory" for file in listing.files if file.name.endswith("/")}
    # What archives contain is selected after they are unpacked.
    is_packed = any(file.unpack is not None for file in listing.files)
    is_archive_file = listing.is_file and any(is_archive(file.name) for file in listing.files)
    if not is_packed and not is_archive_file:
        rest = [file.name for file in listing.files if file.name not in left_out]
        left_out |= _left_out(listing, rest, storage)
    files = tuple(file for file in listing.files if file.name not in left_out)
    names = [file.name for file in files]
    if not files:
        raise ArtifactNotFoundError(f"{listing.uri}: {_why_empty(listing, storage)}")
    if conflict := name_conflict(names):
        raise ArtifactCorruptError(f"{listing.uri}: {conflict}; leave one of them out with exclude")
    if not is_packed:
        _reject_pickles(listing.uri, names, storage)
    return Selection(files, left_out)


def require_no_pickles(path: Path, storage: StorageConfig) -> None:
    """Check files that are used where they are, of which none can be left out.

    Raises:
        StorageError: there are pickled weights, none as safetensors, and the storage does not allow them.
    """
    if storage.allow_pickle:
        return
    with translate_disk_errors(path):
        found = path.rglob("*") if path.is_dir() else [path]
        names = [file.relative_to(path).as_posix() if file != path else file.name for file in found if file.is_file()]
    if storage.include:
        # Only a predictor's config has it here, and its framework reads no other files.
        names = [name for name in names if _matches(name, storage.include)]
    if not any(name.endswith(".safetensors") for name in names):
        _reject_pickles(str(path), sorted(names), storage)


def log_left_out(uri: str, left_out: Mapping[str, str]) -> None:
    """Log how many files are left out, and why."""
    if left_out:
        log.info("artifact.selected", uri=uri, left_out=len(left_out), reasons=sorted(set(left_out.values())))


def is_pickle(name: str) -> bool:
    """Return whether reading a file of this name could run code."""
    return _suffix(name) in PICKLES and not _LAYER.fullmatch(name)


def _check_names(listing: Listing) -> None:
    for file in listing.files:
        # S3's console creates empty objects whose names end with `/` for directories.
        is_marker = file.name.endswith("/") and file.size == 0
        name = file.name.removesuffix("/") if is_marker else file.name
        error = name_error(name)
        if not error and str(PurePosixPath(name)) != name:
            error = "has an empty part in its name"
        if error:
            raise ArtifactCorruptError(f"{listing.uri}: the file {file.name!r} {error}; the model is refused")


def _left_out(listing: Listing, names: Collection[str], storage: StorageConfig) -> dict[str, str]:
    excluded = {name: "exclude matches it" for name in names if _matches(name, storage.exclude)}
    rest = [name for name in names if name not in excluded]
    if storage.include:
        others = {name: "include does not match it" for name in rest if not _matches(name, storage.include)}
    else:
        # A single file was meant, whatever it is.
        others = {} if listing.is_file else _not_loaded(listing.uri, rest, storage)
    return excluded | others


def _not_loaded(uri: str, names: Sequence[str], storage: StorageConfig) -> dict[str, str]:
    """Return the files that nothing here loads: copies of the weights in other formats, and bookkeeping."""
    rules: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("is bookkeeping of git or the hub", lambda name: name.startswith(_BOOKKEEPING)),
        ("is a copy for other programs", lambda name: name.startswith(_OTHER_COPIES)),
        ("is the same weights as the safetensors beside it", _is_other_weights),
    )
    if not any(name.endswith(".safetensors") for name in names):
        _require_loadable(uri, names, storage)
        rules = rules[:1]
    return {name: reason for reason, applies in reversed(rules) for name in names if applies(name)}


def _require_loadable(uri: str, names: Sequence[str], storage: StorageConfig) -> None:
    """Check that files without safetensors among them are worth fetching."""
    weights = sorted(name for name in names if _is_other_weights(name))
    if ggufs := [name for name in weights if name.endswith(".gguf")]:
        raise StorageError(f"{uri}: has GGUF files and no safetensors; write which: {_first_of(ggufs)}")
    if others := [name for name in weights if not is_pickle(name)]:
        raise StorageError(
            f"{uri}: has no safetensors, only {_first_of(weights)}; choose a model that has them, "
            f"or list the files you want under include: {_first_of(others)}"
        )
    _reject_pickles(uri, names, storage)


def _reject_pickles(uri: str, names: Sequence[str], storage: StorageConfig) -> None:
    pickles = [name for name in names if is_pickle(name)]
    if pickles and not storage.allow_pickle:
        raise StorageError(
            f"{uri}: {_first_of(pickles)}: pickled, and could run code when read; choose a model that has "
            "safetensors, or set allow_pickle: true in its storage if you trust whoever made it"
        )


def model_file(location: str, names: Collection[str], framework: FrameworkConfig) -> str:
    """Return the name of a predictor's file: the only one with a suffix of the framework.

    As in KServe's servers, files in the directory itself come first.

    Raises:
        LoadError: there is no such file, or there are several.
    """
    files = sorted(name for name in names if PurePosixPath(name).suffix.lower() in framework.suffixes)
    files = [name for name in files if "/" not in name] or files
    if len(files) == 1:
        return files[0]
    if not files:
        suffixes = ", ".join(framework.suffixes)
        raise LoadError(f"{location}: has no file of {framework.framework}; it must have one that ends in {suffixes}")
    raise LoadError(
        f"{location}: has {len(files)} files of {framework.framework} ({', '.join(files[:5])}); "
        "name the one to load in storage.uri"
    )


def onnx_file(location: str, names: Collection[str], engine: OnnxEncoderConfig) -> str:
    """Return the name of an encoder's ONNX file.

    Raises:
        LoadError: there is no such file.
    """
    if found := next((name for name in engine.files if name in names), None):
        return found
    others = sorted(name for name in names if name.endswith(".onnx"))
    remedy = (
        f"set engine.file to one that it has: {_first_of(others)}"
        if others
        else "export the model, as with: optimum-cli export onnx --model NAME DIRECTORY"
    )
    raise LoadError(f"{location}: has no {' and no '.join(engine.files)}; {remedy}")


def _why_empty(listing: Listing, storage: StorageConfig) -> str:
    if not listing.files:
        return "there are no files; check the path"
    largest = sorted(listing.files, key=lambda file: file.size, reverse=True)[:3]
    is_excluded = storage.exclude and not storage.include
    which = "exclude leaves nothing" if is_excluded else f"include ({', '.join(storage.include)}) matches nothing"
    return f"{which} of its {len(listing.files)} files; the largest are {', '.join(file.name for file in largest)}"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, f"{glob}*" if glob.endswith("/") else glob) for glob in patterns)


def _is_other_weights(name: str) -> bool:
    return is_pickle(name) or _suffix(name) in _OTHER_WEIGHTS


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")
