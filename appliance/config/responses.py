"""Config of stored responses: the key `responses`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from appliance.config.base import BaseConfig

_MEBIBYTE = 1 << 20
_DEFAULT_BYTES = {"memory": 256 * _MEBIBYTE, "file": 4096 * _MEBIBYTE}


class ResponsesConfig(BaseConfig):
    """Storage of the responses and conversations of OpenAI's Responses API, with the texts of users in them.

    Each API key reads its own ones only; without keys, all clients share them.
    """

    store: Literal["memory", "file"] = "memory"
    """`file` keeps them in `directory`, over restarts. `memory` keeps them in a private directory in memory, or on the
    disk if the memory is small, and removes it when the server ends.
    """

    directory: Path | None = None
    """Directory for `store: file`, on a disk that stays; it is created with access for this user only. One server at a
    time may use it, with any number of workers.
    """

    keep_hours: Annotated[float, Field(gt=0)] = 24
    """How long a response is kept after it has ended, and a conversation after its last change, in hours."""

    max_bytes: Annotated[int, Field(ge=_MEBIBYTE)] | None = None
    """Limit of all of them on the disk, in bytes; the oldest ones are removed first. Unset is 256 MiB for `memory` and
    4 GiB for `file`.
    """

    @property
    def byte_limit(self) -> int:
        """The limit in bytes."""
        return self.max_bytes or _DEFAULT_BYTES[self.store]

    @model_validator(mode="after")
    def _has_a_directory_for_files(self) -> Self:
        if self.store == "file" and self.directory is None:
            raise ValueError(
                "has store: file and no directory; must have one on a disk that stays, such as "
                "directory: /var/lib/appliance/responses"
            )
        if self.store == "memory" and self.directory is not None:
            raise ValueError("has store: memory and a directory; must have store: file, or no directory")
        return self
