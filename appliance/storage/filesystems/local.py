"""Plain paths and `file://`: what already lies on a disk, used in place."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError
from appliance.core.suggestions import did_you_mean
from appliance.core.uri import redact, scheme_of
from appliance.storage.cache import Report


def find(storage: StorageConfig, _settings: GlobalStorageConfig, _report: Report) -> Path:
    """The directory or file itself, not a copy: a mounted volume may be larger than any cache.

    Raises:
        ArtifactNotFoundError: it is not there, or an empty directory.
        AccessDeniedError: this user cannot read it.
    """
    path = _path(storage.uri)
    denied = AccessDeniedError(f"{path}: user {os.geteuid()} cannot read it; change its owner or mode")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactNotFoundError(_absent(path)) from error
    except PermissionError as error:
        raise denied from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check the disk or mount it lies on") from error
    if not os.access(path, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK):
        raise denied
    if stat.S_ISDIR(mode):
        if not any(path.iterdir()):
            raise ArtifactNotFoundError(f"{path}: the directory is empty; is the volume mounted?")
    elif not stat.S_ISREG(mode):
        raise StorageError(f"{path}: neither a directory nor a regular file; name one of these")
    return path


def _path(uri: str) -> Path:
    """The absolute path a URI or a plain path means; links stay links, because volumes swap their targets."""
    if "\0" in uri:
        raise StorageError(f"{uri!r}: a path cannot hold a NUL character; remove it")
    if scheme_of(uri) == "file":
        return _from_uri(uri)
    try:
        return Path(uri).expanduser().absolute()
    except RuntimeError as error:
        raise StorageError(f"{uri}: no home directory for '~'; write the path in full") from error


def _from_uri(uri: str) -> Path:
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
    # Bytes, because file names are: a name need not be UTF-8.
    decoded = os.fsdecode(unquote_to_bytes(path))
    if not decoded.startswith("/") or "\0" in decoded:
        raise StorageError(f"{uri}: not an absolute path; write file:///absolute/path, or a plain path")
    return Path(decoded)


def _absent(path: Path) -> str:
    """What to say about a path that is not there: how far it does exist, and what is like it."""
    if path.is_symlink():
        return f"{path}: a link to {path.readlink()}, which does not exist"
    above = next(parent for parent in path.parents if parent.exists())
    missing = path.relative_to(above).parts[0]
    known = [path.name for path in above.iterdir()] if above.is_dir() and os.access(above, os.R_OK) else []
    hint = did_you_mean(missing, known) or "check the path, and that its volume is mounted"
    return f"{path}: no such file or directory ({above} exists, and has no {missing!r}); {hint}"
