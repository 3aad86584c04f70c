"""Files and batches as OpenAI's objects; they are stored and sent in this form.

Source: https://platform.openai.com/docs/api-reference/files/object and
https://platform.openai.com/docs/api-reference/batch/object.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]

FINAL: frozenset[Status] = frozenset({"failed", "completed", "expired", "cancelled"})
"""The statuses of batches that have ended."""


class FileObject(msgspec.Struct, kw_only=True):
    """A file; times are seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class BatchError(msgspec.Struct):
    """Why a batch failed: the fault of one line of its input file, or of the whole."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct):
    """The errors of a batch that failed."""

    data: Sequence[BatchError]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct):
    """The requests of a batch, and how many have ended."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Expiry(msgspec.Struct):
    """When a file expires, in seconds after its creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=3600, le=2_592_000)]


class Batch(msgspec.Struct, kw_only=True):
    """A batch; each time is None until it comes."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    metadata: Mapping[str, str] | None = None
    output_expires_after: Expiry | None = None
    """When the files with its results expire; None is the server's default."""

    @classmethod
    def lost(cls, batch_id: str) -> Batch:
        """Return what is left of a batch whose description is damaged."""
        return cls(id=batch_id, endpoint="", input_file_id="", completion_window="", created_at=now(), expires_at=now())

    @property
    def ended_at(self) -> int:
        """When it ended, if it has."""
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at or 0

    def enter(self, status: Status) -> None:
        """Be in a status from now on."""
        self.status = status
        if status != "validating":
            setattr(self, f"{status}_at", now())


def now() -> int:
    """Return the seconds since 1970."""
    return int(time.time())


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess; later ones are sorted after earlier ones."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"
