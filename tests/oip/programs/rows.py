"""A matrix of what a client can do, as a program that prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

HTTP, GRPC, MODEL = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

_rows: dict[str, Callable[[], None]] = {}


def row(work: Callable[[], None]) -> Callable[[], None]:
    """Puts a function into the matrix under its name."""
    _rows[work.__name__] = work
    return work


def show() -> None:
    """Try every row."""
    # KServe reads the command line too.
    sys.argv[1:] = []
    print(json.dumps({name: _tried(work) for name, work in _rows.items()}))


def _tried(work: Callable[[], None]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "ok"
