"""Memory that was freed."""

from __future__ import annotations

import ctypes

import psutil
import pytest

from appliance.core.system import return_free_memory

# Smaller ones have an allocator of Python's own, larger ones are returned at once.
_SIZE, _COUNT = 4096, 25_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library is not glibc")
def test_freed_memory_is_returned_although_some_above_it_is_in_use() -> None:
    """The C library returns by itself only what no other allocation follows."""
    pieces = [b"x" * _SIZE for _ in range(_COUNT)]
    # This one is above them.
    last = [b"x" * _SIZE]
    del pieces
    before = psutil.Process().memory_info().rss

    return_free_memory()

    assert before - psutil.Process().memory_info().rss > _SIZE * _COUNT / 2
    assert last
