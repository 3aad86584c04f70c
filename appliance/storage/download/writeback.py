"""Have the kernel bring bytes to the disk while others still come, so that the sync at the end finds little to do."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

from appliance.storage.download.ranges import ByteRange

# The number <linux/fs.h> gives it.
_SYNC_FILE_RANGE_WRITE = 2


def begin(handle: int, span: ByteRange) -> None:
    """Start writing a span of an open file out; a help that other systems do without, and no promise of anything."""
    if start := _sync_file_range():
        start(handle, ctypes.c_int64(span.start), ctypes.c_int64(span.end - span.start), _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
