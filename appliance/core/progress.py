"""The callback through which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in total, None when the total is unknown.

It is called at least once a second, also while nothing moves: `(0, None)` stands for work without a byte count, such as
waiting for a lock. It may raise to cancel the work; what cannot be resumed is removed, and the exception passes through
unchanged.
"""


def ignore_progress(_done: int, _total: int | None) -> None:
    """Do nothing."""
