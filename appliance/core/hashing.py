"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from appliance.core.disk import translate_disk_errors
from appliance.core.progress import OnProgress, ignore_progress

_BLOCK_BYTES = 1 << 20


def sha256_of(path: Path, on_progress: OnProgress = ignore_progress) -> str:
    """Return the SHA-256 of a file in hex; `on_progress` is called for each megabyte."""
    state = hashlib.sha256()
    for block in _read_blocks(path):
        state.update(block)
        on_progress(0, None)
    return state.hexdigest()


def _read_blocks(path: Path) -> Iterator[bytes]:
    with translate_disk_errors(path), path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
