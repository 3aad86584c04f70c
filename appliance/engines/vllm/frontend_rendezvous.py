"""Several front ends on one engine: where they meet."""

from __future__ import annotations

import asyncio
import fcntl
import json
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING

from appliance.core.errors import LoadError
from appliance.core.model import FrontEnd
from appliance.engines.vllm.hangup_monitor import HangupMonitor

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# How late one front end may see what another did.
_LOOK_SECONDS = 0.05

_NAME_LENGTH = 12


class FrontendRendezvous:
    """How the front ends of one engine find it and each other: all in files, since they are forked before there is one.

    The engine says that it is ready once, to each of them. So none can come later, or a second time.
    One that is alone is the host of nobody, and needs no files.
    """

    def __init__(self, front_end: FrontEnd, model: str) -> None:
        folder = front_end.folder
        self.number = 0 if folder is None else front_end.number
        self.count = 1 if folder is None else front_end.count
        # A Unix socket's path has room for some hundred bytes, and a name may have more, and slashes.
        self._stem = (folder or Path()) / sha256(model.encode()).hexdigest()[:_NAME_LENGTH]
        self._presence: IO[bytes] | None = None
        self._line: HangupMonitor | None = None

    @property
    def is_host(self) -> bool:
        """This one starts the engine, and ends it."""
        return self.number == 0

    @property
    def is_shared(self) -> bool:
        """There are others."""
        return self.count > 1

    @property
    def pulse(self) -> Path:
        """A file that is touched when the engine makes a step."""
        return self._stem.with_suffix(".pulse")

    def addresses(self, number: int) -> tuple[str, str]:
        """Where the front end of this number listens: for the engine that asks for requests, and for its answers."""
        return f"ipc://{self._stem}.{number}.in", f"ipc://{self._stem}.{number}.out"

    def open(self, stats_address: str | None) -> None:
        """
        The host's engine is ready, and the others join; `stats_address` is where copies of it tell how busy they are.
        """
        if self.is_host and self.is_shared:
            self.pulse.touch()
            self._say({"stats_address": stats_address})

    def refuse(self, reason: str) -> None:
        """The host has no engine to join."""
        if self.is_host and self.is_shared:
            self._say({"refusal": reason})

    def join(self, proceed: Callable[[], None]) -> str | None:
        """Wait until the engine is ready, and be counted from now on; blocks. What `open` was told.

        `proceed` raises when nobody wants that any more.

        Raises:
            LoadError: there will be none.
        """
        while not self._word.exists():
            proceed()
            time.sleep(_LOOK_SECONDS)
        word = json.loads(self._word.read_text())
        if "refusal" in word:
            raise LoadError(word["refusal"])
        self._presence = self._roll.open("ab")
        # Given back by the kernel when this process ends, however it does.
        fcntl.flock(self._presence, fcntl.LOCK_SH)
        stats_address: str | None = word["stats_address"]
        return stats_address

    def listen(self, llm: AsyncLLM) -> None:
        """Hear of the engine's end, as one who joined it."""
        self._line = HangupMonitor(llm)

    @property
    def is_cut(self) -> bool:
        """The engine that was joined has ended."""
        return self._line is not None and self._line.is_cut

    def leave(self) -> None:
        """Be counted no more; safe to call twice."""
        if self._line is not None:
            self._line.close()
        if self._presence is not None:
            self._presence.close()

    async def dissolve(self) -> None:
        """
        As the host, wait until the others have left; each does when its own calls are done, or the time for them over.
        """
        while self.is_host and self.is_shared and not self._is_empty():  # noqa: ASYNC110 - a lock of other processes
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_empty(self) -> bool:
        with self._roll.open("ab") as roll:
            try:
                fcntl.flock(roll, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    @property
    def _word(self) -> Path:
        return self._stem.with_suffix(".word")

    @property
    def _roll(self) -> Path:
        return self._stem.with_suffix(".roll")

    def _say(self, word: object) -> None:
        draft = self._stem.with_suffix(".draft")
        draft.write_text(json.dumps(word))
        draft.replace(self._word)
