"""What one storage wants of a listing, as an artifact of the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config.storage import StorageConfig
from appliance.storage.archives import is_archive, top
from appliance.storage.cache import Cache
from appliance.storage.file_list import FileInfo, FileList
from appliance.storage.filesystems.base import Listing, RemoteFile


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """The files of a place that are selected by the rules of a storage."""

    listing: Listing
    files: Sequence[RemoteFile]
    storage: StorageConfig

    @property
    def archive(self) -> RemoteFile | None:
        """The one file, where that is an archive and its contents are meant."""
        return self.files[0] if self.listing.is_file and is_archive(self.files[0].name) else None

    @property
    def key(self) -> str:
        """
        What tells these files in this state from all others; of an archive, what is taken out of it belongs to that.
        """
        rules = self.storage.model_dump_json(include={"include", "exclude", "allow_pickle"}) if self.archive else ""
        state = ([file.name, file.size, file.version, sorted(file.digests.items())] for file in self.files)
        return f"{self.listing.place}#{hashlib.sha256(json.dumps([rules, *state]).encode()).hexdigest()}"

    @property
    def listed(self) -> FileList:
        """The files as the store describes them."""
        held = {file.name: FileInfo(file.size, file.digests.get("sha256")) for file in self.files}
        return FileList(self.listing.place, held, self.listing.is_file)

    def within(self, files: Path) -> Path:
        """What the URI means in the directory with the files of the artifact: a directory, or the one file."""
        if self.archive:
            return top(files)
        return files / self.files[0].name if self.listing.is_file else files

    def find(self, cache: Cache) -> Path | None:
        """Where it lies in the cache already, or None."""
        files = cache.find(self.key)
        return self.within(files) if files else None
