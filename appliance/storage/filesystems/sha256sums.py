"""`SHA256SUMS`: the file that `sha256sum` writes, as the listing of a directory on a web server."""

from __future__ import annotations

import re
from collections.abc import Mapping

from appliance.core.errors import ArtifactCorruptError
from appliance.storage import path_safety

NAME = "SHA256SUMS"

# As GNU coreutils writes it, and as BSD's tools do (`sha256sum --tag`).
_LINE = re.compile(r"(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<tagged>.+)\) = (?P<tag>[0-9a-fA-F]{64})")


def parse(what: str, text: str) -> Mapping[str, str]:
    """The digest of each file by its name, in the order of the file.

    Raises:
        ArtifactCorruptError: it is no such file, or names something elsewhere.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (match := _LINE.fullmatch(line)):
            raise ArtifactCorruptError(f"{what}: line {number} of {NAME} is no line of sha256sum; write it anew")
        name = (match["name"] or match["tagged"]).removeprefix("./")
        if fault := path_safety.fault(name):
            raise ArtifactCorruptError(f"{what}: the file {name!r} in {NAME} {fault}; the model is refused")
        found[name] = (match["sum"] or match["tag"]).lower()
    # The shell makes the file before sha256sum looks for files, so it often lists itself.
    found.pop(NAME, None)
    return found
