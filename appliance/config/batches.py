"""Config of batches: files of requests that are answered in the capacity that interactive requests leave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from appliance.config.base import BaseConfig
from appliance.config.limits import Count

BatchStart = Literal["pause", "idle", "always"]
"""When requests of batches start."""


class BatchesConfig(BaseConfig):
    """OpenAI's files and batches: `/v1/files` and `/v1/batches`.

    Each API key has its own; without keys all clients share them. An interrupted batch continues at the next start.
    """

    directory: Path
    """Directory of uploaded files and results, of this server alone; a persistent volume keeps them. It is created for
    this user only.
    """

    keep_hours: Annotated[float, Field(gt=0)] = 720
    """Time after which files and ended batches are deleted, in hours, unless a client says so for a file."""

    max_file_bytes: Annotated[int, Field(ge=1024)] = 200 * 1024 * 1024
    """Limit of an uploaded file, in bytes; a larger one is 413."""

    max_bytes: Annotated[int, Field(ge=1024)] = 20 * 1024**3
    """Limit of all files together, in bytes; an upload beyond it is 413 until files are deleted or expire."""

    max_requests: Count = 50_000
    """Limit of requests in one batch."""

    concurrent: Count = 8
    """Limit of requests of batches that one model answers at once. They start only while no other request waits, and
    take at most half of the model's `limits.concurrent`.
    """

    start: BatchStart = "pause"
    """When requests of batches start beside interactive ones. `pause`: after a time without requests that is long for
    the current traffic, at most 60 seconds, so that the 95th percentile of the time to first token is kept. `idle`:
    whenever no interactive request runs. With both, a request that comes interrupts them, and one runs beside every 20
    interactive sequences. `always`: whenever the model has room; interactive requests then share the engine with them.
    """
