"""What can go wrong with the bytes of models."""

from __future__ import annotations

from appliance.core.errors.base import ApplianceError


class StorageError(ApplianceError):
    """The bytes of a model cannot be brought."""

    exit_code = 3


class ArtifactNotFoundError(StorageError):
    """Nothing lies at the URI."""

    exit_code = 10


class AccessDeniedError(StorageError):
    """The store wants other credentials than the ones it was given."""

    exit_code = 11


class GatedError(AccessDeniedError):
    """The credentials are good, and the owner of the model has to consent first."""

    exit_code = 12


class NoSpaceError(StorageError):
    """The bytes do not fit on the disk."""

    exit_code = 13


class StorageUnavailableError(StorageError):
    """The store does not answer; a later try may succeed.

    `retry_after` is the wait in seconds that the store asks for, or None.
    """

    exit_code = 14

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageTimeoutError(StorageError):
    """Bringing the bytes took longer than it may."""

    exit_code = 15


class ArtifactCorruptError(StorageError):
    """Bytes arrived, but not the ones that were promised."""

    exit_code = 16


class ArtifactChangedError(ArtifactCorruptError):
    """The store's bytes are others than they were: changed while they were fetched, or since they were pinned."""

    exit_code = 17
