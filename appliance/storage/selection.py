"""
Which files of a place are fetched.
"""

from __future__ import annotations

from appliance.errors import ArtifactCorruptError, ArtifactNotFoundError
from appliance.storage import names
from appliance.storage.section import StorageSection
from appliance.storage.store import Listing, RemoteFile


def select(listing: Listing, _storage: StorageSection) -> tuple[RemoteFile, ...]:
    """
    The files to fetch; every name is checked, and one bad name condemns the place.

    Raises:
        ArtifactNotFoundError: there is none.
        ArtifactCorruptError: a file would land elsewhere.
    """
    for file in listing.files:
        if fault := names.fault(file.name):
            raise ArtifactCorruptError(f"{listing.place}: the file {file.name!r} {fault}; the model is refused")
    if not listing.files:
        raise ArtifactNotFoundError(f"{listing.place}: nothing lies there; check the path")
    return listing.files
