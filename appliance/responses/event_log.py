"""The events of a response in the background: written by the process that runs it, read by any other.

Source: https://platform.openai.com/docs/guides/background#streaming-a-background-response
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import msgspec

from appliance.core import sse
from appliance.core.errors import UnavailableError
from appliance.core.openai_types import Json
from appliance.core.stored_objects import ObjectKey
from appliance.responses import events
from appliance.responses.store import EVENTS, ResponseStore

# Events of this time are written together; a reader is as late.
_WRITE_SECONDS = 0.05
_READ_SECONDS = 0.05

# A comment is sent after so much silence.
_KEEP_ALIVE_SECONDS = 15.0


class EventWriter:
    """Writes the events of one response, numbered from 0, one on each line."""

    def __init__(self, store: ResponseStore, key: ObjectKey) -> None:
        self._store, self._key = store, key
        self._number = 0
        self._unwritten: list[bytes] = []
        self._has_more = asyncio.Event()

    async def begin(self, response: Json) -> None:
        """Write the first two events, in the place of all that an earlier attempt wrote."""
        self._number, self._unwritten = 0, []
        for kind in ("response.created", "response.queued"):
            self.add({"type": kind, "response": response})
        await asyncio.to_thread(self._store.objects.write, self._key, EVENTS, self._taken(), must_exist=True)

    def add(self, event: Json) -> None:
        """Add an event at the end."""
        self._unwritten.append(msgspec.json.encode({**event, "sequence_number": self._number}) + b"\n")
        self._number += 1
        self._has_more.set()

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[None]:
        """Write in the block, and at its end, what has been added."""
        task = asyncio.create_task(self._write_forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._write()

    async def _write_forever(self) -> None:
        while True:
            await self._has_more.wait()
            await asyncio.sleep(_WRITE_SECONDS)
            await asyncio.shield(self._write())

    async def _write(self) -> None:
        if data := self._taken():
            await asyncio.to_thread(self._store.objects.append, self._key, EVENTS, data)

    def _taken(self) -> bytes:
        self._has_more.clear()
        data, self._unwritten = b"".join(self._unwritten), []
        return data


class _EventReader:
    """Reads the lines of a file that grows, or is begun again."""

    def __init__(self, store: ResponseStore, key: ObjectKey) -> None:
        self._store, self._key = store, key
        self._file = 0
        self._offset = 0

    def read(self) -> list[bytes]:
        """Return the lines that are new."""
        path = self._store.objects.path(self._key)
        if path is None:
            return []
        try:
            with (path / EVENTS).open("rb") as file:
                number = os.fstat(file.fileno()).st_ino
                if number != self._file:
                    self._file, self._offset = number, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()


class _Event(msgspec.Struct):
    type: str
    sequence_number: int


async def follow(
    store: ResponseStore, key: ObjectKey, after: int, is_closed: Callable[[], bool]
) -> AsyncGenerator[bytes]:
    """Yield the events after a number as server-sent events, until the last one, or until the response has ended.

    Raises:
        UnavailableError: the server stops.
    """
    reader = _EventReader(store, key)
    silent = 0.0
    while True:
        # Before the events: those that come before the end are then all read.
        has_ended = await asyncio.to_thread(store.has_ended, key)
        new, is_last = [], False
        for line in await asyncio.to_thread(reader.read):
            event = msgspec.json.decode(line, type=_Event)
            is_last = event.type in events.LAST
            # A file that is begun again has the same first events.
            if event.sequence_number > after:
                new.append(sse.event(line, event.type))
                after = event.sequence_number
        if new or silent >= _KEEP_ALIVE_SECONDS:
            yield b"".join(new) or sse.KEEP_ALIVE
            silent = 0.0
        if is_last or has_ended:
            return
        if is_closed():
            raise UnavailableError("The server stops; read on later with starting_after", retry_after=10)
        await asyncio.sleep(_READ_SECONDS)
        silent += _READ_SECONDS
