"""`pvc://NAME/PATH`: volumes of Kubernetes by the names of their claims, mounted below one directory."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactNotFoundError, StorageError
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import redact
from appliance.storage import path_safety
from appliance.storage.cache import Report
from appliance.storage.filesystems import local


def find(storage: StorageConfig, settings: GlobalStorageConfig, report: Report) -> Path:
    """The directory or file on the volume itself, not a copy.

    Raises:
        ArtifactNotFoundError: no such volume is mounted, or nothing lies there.
        StorageError: the path leads out of the volume, as it is written or by a link.
    """
    root = settings.pvc_root.expanduser().absolute()
    claim, path = _parse(storage.uri)
    volume = root / claim
    if not volume.is_dir():
        raise ArtifactNotFoundError(f"pvc://{claim}: {_unmounted(root, claim)}")
    found = volume / path
    if not found.resolve().is_relative_to(volume.resolve()):
        raise StorageError(f"pvc://{claim}/{path}: a link leads out of the volume; put the files themselves there")
    return local.find(storage.model_copy(update={"uri": f"file://{quote(str(found))}"}), settings, report)


def _parse(uri: str) -> tuple[str, str]:
    claim, _, path = uri.partition("://")[2].partition("/")
    path = unquote(path).strip("/")
    if not claim or path_safety.fault(claim):
        raise StorageError(f"{redact(uri)}: names no volume; write pvc://NAME/PATH")
    if path and (fault := path_safety.fault(path)):
        raise StorageError(f"{redact(uri)}: the path {fault}; write pvc://NAME/PATH")
    return claim, path


def _unmounted(root: Path, claim: str) -> str:
    mounted = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not mounted:
        return f"{root} has no volumes; mount it at {root / claim}, or set storage.pvc_root"
    hint = did_you_mean(claim, mounted) or known_names("volumes", mounted)
    return f"no such volume at {root / claim}; {hint}"
