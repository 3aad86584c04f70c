"""JSON files that come with a model, which may be malicious: bounded in size and depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG_BYTES = 16 * 1024 * 1024
"""Size limit of a file that describes a model; the largest known ones have one megabyte."""


def parse(raw: bytes) -> Any:  # Any: JSON values
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(raw)
    except RecursionError:
        # Without the cause: its traceback has a thousand lines.
        raise ValueError("it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        # Python's message names its own settings.
        raise ValueError("it has a number of thousands of digits") from None


def read(file: Path, max_bytes: int = CONFIG_BYTES) -> Any:  # Any: JSON values
    """Return the value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, not JSON, or nested too deeply.
    """
    with file.open("rb") as opened:
        raw = opened.read(max_bytes + 1)
    require_size(len(raw), max_bytes)
    return parse(raw)


def require_size(size: int, max_bytes: int) -> None:
    """Check that a file is small enough to be read.

    Raises:
        ValueError: it is not.
    """
    if size > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes, which is the limit")
