"""A file whose digest is not the promised one: find the ranges that are wrong, and fetch only these again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import structlog

from appliance.core.errors import ArtifactCorruptError
from appliance.storage.download.checksums import Digests
from appliance.storage.download.file_download import FileDownload
from appliance.storage.download.range_reader import RangeReader
from appliance.storage.download.ranges import ByteRange

log = structlog.get_logger()


async def mend(reader: RangeReader, part: FileDownload, found: Digests, chunks: Sequence[ByteRange]) -> Digests:
    """Read chunk after chunk from the store again, replace what is different, and stop as soon as the digest holds.

    Raises:
        ArtifactCorruptError: it never does; what lies there is forgotten.
    """
    log.warning("artifact.mismatched", what=reader.what(part.file), algorithm=found.algorithm)
    for chunk in chunks:
        mended: list[ByteRange] = []
        await reader.bring(part.file, chunk, partial(part.mending, mended))
        if mended:
            found = await part.digest_anew()
            if found.are_as_promised:
                log.info("artifact.mended", what=reader.what(part.file), start=chunk.start, end=chunk.end)
                return found
    await part.forget()
    raise ArtifactCorruptError(
        f"{reader.what(part.file)}: {found.algorithm} is {found.taken}, and the store promises {found.promised}, "
        "also when it is read again; ask whoever keeps the store, or a proxy before it"
    )
