"""Files that are used in place: plain paths, `file://`, and `pvc://NAME/PATH` for mounted Kubernetes volumes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import is_hub_name, redact, scheme_of
from appliance.storage.path_safety import name_error


def find_path(uri: str, _settings: GlobalStorageConfig) -> Path:
    """Return the directory or file itself, not a copy: a mounted volume may be larger than any cache."""
    path = _parse_path(uri)
    if is_hub_name(uri) and not path.parent.exists():
        raise ArtifactNotFoundError(f"{path}: no such file or directory; did you mean hf://{uri}?")
    return _require_readable(path)


def find_in_volume(uri: str, settings: GlobalStorageConfig) -> Path:
    """Return the directory or file on the volume of a claim, mounted below `storage.pvc_root`; not a copy."""
    root = settings.pvc_root.expanduser().absolute()
    claim, path = _parse_volume(uri)
    volume = root / claim
    if not volume.is_dir():
        raise ArtifactNotFoundError(f"pvc://{claim}: {_not_mounted(root, claim)}")
    found = volume / path
    if not found.resolve().is_relative_to(volume.resolve()):
        raise StorageError(f"pvc://{claim}/{path}: a link leads out of the volume; put the files themselves there")
    return _require_readable(found)


def _require_readable(path: Path) -> Path:
    denied = AccessDeniedError(f"{path}: user {os.geteuid()} cannot read it; change its owner or mode")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactNotFoundError(_describe_missing(path)) from error
    except PermissionError as error:
        raise denied from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check the disk or mount it is on") from error
    if not os.access(path, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK):
        raise denied
    if stat.S_ISDIR(mode):
        if not any(path.iterdir()):
            raise ArtifactNotFoundError(f"{path}: the directory is empty; is the volume mounted?")
    elif not stat.S_ISREG(mode):
        raise StorageError(f"{path}: neither a directory nor a regular file; name one of these")
    return path


def _parse_path(uri: str) -> Path:
    """Return the absolute path; links are not resolved, because volumes exchange their targets."""
    if "\0" in uri:
        raise StorageError(f"{uri!r}: a path cannot hold a NUL character; remove it")
    if scheme_of(uri) == "file":
        return _parse_file_uri(uri)
    try:
        return Path(uri).expanduser().absolute()
    except RuntimeError as error:
        raise StorageError(f"{uri}: no home directory for '~'; write the path in full") from error


def _parse_file_uri(uri: str) -> Path:
    """RFC 8089: an authority, empty or `localhost`, then an absolute percent-encoded path."""
    rest = uri[len("file:") :]
    authority, path = "", rest
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        path = slash + path
    if authority.lower() not in ("", "localhost"):
        raise StorageError(
            f"{redact(uri)}: names the host {authority.rpartition('@')[2]!r}, and only local files can be read; "
            f"write file:///{authority}{path} if it is part of the path"
        )
    if "?" in path or "#" in path:
        raise StorageError(f"{redact(uri)}: a file URI has no query or fragment; write '?' as %3F and '#' as %23")
    # Decoded as bytes, because a file name need not be UTF-8.
    decoded = os.fsdecode(unquote_to_bytes(path))
    if not decoded.startswith("/") or "\0" in decoded:
        raise StorageError(f"{uri}: not an absolute path; write file:///absolute/path, or a plain path")
    return Path(decoded)


def _describe_missing(path: Path) -> str:
    """Say how much of a path exists, and what is similar to the rest."""
    if path.is_symlink():
        return f"{path}: a link to {path.readlink()}, which does not exist"
    parent = next(parent for parent in path.parents if parent.exists())
    missing = path.relative_to(parent).parts[0]
    known = [path.name for path in parent.iterdir()] if parent.is_dir() and os.access(parent, os.R_OK) else []
    hint = did_you_mean(missing, known) or "check the path, and that its volume is mounted"
    return f"{path}: no such file or directory ({parent} exists, and has no {missing!r}); {hint}"


def _parse_volume(uri: str) -> tuple[str, str]:
    claim, _, path = uri.partition("://")[2].partition("/")
    path = unquote(path).strip("/")
    if not claim or name_error(claim):
        raise StorageError(f"{redact(uri)}: names no volume; write pvc://NAME/PATH")
    if path and (error := name_error(path)):
        raise StorageError(f"{redact(uri)}: the path {error}; write pvc://NAME/PATH")
    return claim, path


def _not_mounted(root: Path, claim: str) -> str:
    mounted = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not mounted:
        return f"{root} has no volumes; mount it at {root / claim}, or set storage.pvc_root"
    hint = did_you_mean(claim, mounted) or known_names("volumes", mounted)
    return f"no such volume at {root / claim}; {hint}"
