"""One request to an upstream, and its answer from the first byte to the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from appliance.core.errors import GatewayError
from appliance.proxy.model_name import RenamableBody
from appliance.proxy.response import UpstreamResponse

End = str | BaseException
"""
How a request ended: with a class of status such as ``2xx``, or with an error; any other error is a client that left.
"""


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What is asked, whoever is asked; `key` is the head of the prompt."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: RenamableBody
    key: bytes
    is_generation: bool
    patience: float | None
    """Seconds of silence after which a stream goes out to its client without its first byte; None waits for it."""


class UpstreamExchange:
    """An answer under way; whoever has it closes it, and only then it has ended."""

    def __init__(self, answer: UpstreamResponse, first: bytes | None, tell_end: Callable[[End], None]) -> None:
        self.answer = answer
        self.first = first
        self._tell_end = tell_end
        self._end: End | None = None
        self._is_closed = False
        self._note(first)

    async def more(self, patience: float | None = None) -> bytes | None:
        """As `UpstreamResponse.more`, and a failure is held against the upstream.

        Raises:
            GatewayError: the answer breaks off.
        """
        try:
            chunk = await self.answer.more(patience)
        except GatewayError as error:
            self._end = error
            raise
        self._note(chunk)
        return chunk

    async def whole(self) -> bytes:
        """The rest of the body, the first bytes included.

        Raises:
            GatewayError: the answer breaks off.
        """
        chunks = [self.first or b""]
        size = len(chunks[0])
        while self._end is None:
            chunks.append(await self.more() or b"")
            size += len(chunks[-1])
            self.require_room(size)
        return b"".join(chunks)

    def require_room(self, size: int) -> None:
        """As `UpstreamResponse.require_room`, and a failure is held against the upstream.

        Raises:
            GatewayError: the bytes are too many.
        """
        try:
            self.answer.require_room(size)
        except GatewayError as error:
            self._end = error
            raise

    def discard(self) -> None:
        """Let the connection go without reading the body, because the status says enough."""
        self._end = self._end or f"{self.answer.status // 100}xx"
        self.close()

    def close(self) -> None:
        """Let the connection go. Safe to call twice."""
        if not self._is_closed:
            self._is_closed = True
            self.answer.close()
            self._tell_end(self._end or GeneratorExit())

    def _note(self, chunk: bytes | None) -> None:
        if chunk == b"":
            self._end = f"{self.answer.status // 100}xx"
