"""
A file whose digest is not the promised one: find the ranges that are wrong, and fetch only these again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import structlog

from appliance.errors import ArtifactCorruptError
from appliance.storage.store import RemoteFile
from appliance.storage.transfer.digests import Digests
from appliance.storage.transfer.part import Part
from appliance.storage.transfer.ranges import Span

log = structlog.get_logger()

Pieces = Callable[[RemoteFile, Span], AsyncGenerator[bytearray]]


async def mend(what: str, part: Part, found: Digests, chunks: Sequence[Span], pieces: Pieces) -> Digests:
    """
    Read chunk after chunk from the store again, replace what is different, and stop as soon as the digest holds;
    `what` names the file in messages.

    Raises:
        ArtifactCorruptError: it never does; what lies there is forgotten.
    """
    log.warning("artifact.mismatched", what=what, algorithm=found.algorithm)
    for chunk in chunks:
        if await _replace(part, chunk, pieces):
            found = await part.digest_anew()
            if found.are_as_promised:
                log.info("artifact.mended", what=what, start=chunk.start, end=chunk.end)
                return found
    await part.forget()
    raise ArtifactCorruptError(
        f"{what}: {found.algorithm} is {found.taken}, and the store promises {found.promised}, also of what "
        "came when it was read again; ask whoever keeps the store, or a proxy before it"
    )


async def _replace(part: Part, chunk: Span, pieces: Pieces) -> bool:
    """
    Whether the store has other bytes than the disk now, and the disk has them, too.
    """
    at, differed = chunk.start, False
    async with aclosing(pieces(part.file, chunk)) as answer:
        async for data in answer:
            if await part.differs(at, data):
                await part.put(at, data)
                differed = True
            at += len(data)
    return differed
