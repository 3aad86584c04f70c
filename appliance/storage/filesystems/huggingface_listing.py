"""The files of a model as a hub lists them, in either of its two ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from appliance.core.errors import StorageError
from appliance.core.suggestions import did_you_mean, known_names
from appliance.storage.filesystems.base import RemoteFile
from appliance.storage.filesystems.object_listing import only_known

Json = Mapping[str, Any]  # Any: JSON


def siblings(model: Json) -> Mapping[str, RemoteFile] | None:
    """The files in what a hub says about a model, by their names; None where it leaves out how large they are."""
    entries = model.get("siblings") or ()
    if not all(isinstance(entry.get("size"), int) for entry in entries):
        return None
    return {
        entry["rfilename"]: _file(
            entry["rfilename"], entry["size"], entry.get("blobId"), (entry.get("lfs") or {}).get("sha256")
        )
        for entry in entries
    }


def in_tree(uri: str, entries: object) -> Mapping[str, RemoteFile]:
    """The files in a page of a model's tree, by their names.

    Raises:
        StorageError: it is no such page.
    """
    try:
        return {
            entry["path"]: _file(entry["path"], entry["size"], entry.get("oid"), (entry.get("lfs") or {}).get("oid"))
            for entry in _files(entries)
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{uri}: the hub lists no files; check HF_ENDPOINT") from error


def absent(path: str, names: Collection[str]) -> str:
    """What to say about a path that is not among the names of files."""
    if not names:
        return "the model has no files; check the name and the revision"
    parts = [name.split("/") for name in names]
    paths = {"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
    hint = did_you_mean(path, paths) or known_names("files", sorted(names)[:5])
    return f"has no {path!r}; {hint}"


def _files(entries: Any) -> Iterable[Json]:  # Any: JSON
    return (entry for entry in entries if entry["type"] == "file")


def _file(name: str, size: int, blob: str | None, sha256: str | None) -> RemoteFile:
    """A large file has its SHA-256, and any other git's digest of its blob."""
    digests = only_known([("sha256", sha256), ("git-blob-sha1", None if sha256 else blob)])
    return RemoteFile(name, size, next(iter(digests.values()), None), digests)
