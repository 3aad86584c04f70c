"""Locks on files."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.file_lock import FileLock


@pytest.mark.parametrize("shared", [True, False])
def test_a_lock_that_nobody_has_any_more_is_released(tmp_path: Path, shared: bool) -> None:
    """A download that was cancelled at its end leaves the lock on its files to nobody."""
    lock = FileLock.try_acquire(tmp_path / "lock", shared=shared)
    assert FileLock.try_acquire(tmp_path / "lock") is None
    del lock
    assert FileLock.try_acquire(tmp_path / "lock") is not None
