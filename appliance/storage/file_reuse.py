"""What earlier states of a place had: most files of a model stay as they are when one of them changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from appliance.storage import manifest
from appliance.storage.cache import Cache
from appliance.storage.download import NAME, Journal, mark
from appliance.storage.filesystems.base import RemoteFile


def known_digests(cache: Cache, place: str, files: Sequence[RemoteFile]) -> Mapping[str, str]:
    """The SHA-256, by name, of the files that an artifact of the same place has in the same version.

    That says more than the listing of most stores, and enough to take such a file from the cache.
    """
    wanted = {known_as: file for file in files if (known_as := mark(file))}
    found: dict[str, str] = {}
    for artifact in cache.states(place):
        contents = manifest.read(artifact)
        if contents is None or contents.source.partition("#")[0] != place:
            continue
        for known_as in Journal(artifact / NAME).claims().keys() & wanted.keys():
            file = wanted[known_as]
            entry = contents.files.get(file.name)
            if entry and entry.size == file.size:
                found[file.name] = entry.sha256
    return found
