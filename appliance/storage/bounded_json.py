"""JSON of files that come with a model, which nobody here has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG_BYTES = 16 * 1024 * 1024
"""
Largest file that says what a model is; the largest known ones have one megabyte.
"""


def parse(raw: bytes) -> Any:  # Any: JSON values
    """The value of a JSON text.

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
        # Python's text names its own settings, which are not for those who read this.
        raise ValueError("it has a number of thousands of digits") from None


def read(file: Path, most: int = CONFIG_BYTES) -> Any:  # Any: JSON values
    """The value of a JSON file of at most so many bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, not JSON, or nested too deeply.
    """
    with file.open("rb") as opened:
        raw = opened.read(most + 1)
    require_size(len(raw), most)
    return parse(raw)


def require_size(size: int, most: int) -> None:
    """Return where a file is not too large to be read.

    Raises:
        ValueError: it is.
    """
    if size > most:
        raise ValueError(f"it has more than {most} bytes, which is the limit")
