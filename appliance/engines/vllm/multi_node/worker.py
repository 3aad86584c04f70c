"""Rank 0 of one model, as another of its machines sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import structlog

from appliance.core.errors import LoadError
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.multi_node.protocol import (
    Hello,
    NodeMessage,
    digest,
    hear,
    keep_alive,
    require_there,
    say,
    unless_gone,
)
from appliance.engines.vllm.parallel_args import Addresses

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_CONNECT_SECONDS = 5.0
_AGAIN_SECONDS = 0.5


class WorkerNode:
    """Joined, and watched until it goes."""

    def __init__(self, setup: EngineSpec) -> None:
        nodes = setup.layout.nodes
        self._setup = setup
        self._hello = Hello(nodes.rank, digest(setup))
        self._place = (nodes.address, nodes.port)
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.has_started = False
        """Its engine computes, with our help."""
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    async def join(self) -> EngineSpec:
        """Wait until it is there and has all the others, for as long as it takes.

        The setup with the addresses that this machine and it know each other by.

        Raises:
            LoadError: it refuses this machine.
        """
        log.info("leader.awaited", model=self._setup.names[0], address=self._place[0], port=self._place[1])
        while (joined := await self._try()) is None:  # noqa: ASYNC110 - nobody rings before it is there
            await asyncio.sleep(_AGAIN_SECONDS)
        reader, self._writer = joined
        self._listening = asyncio.create_task(self._listen(reader))
        own, leader = (self._writer.get_extra_info(side)[0] for side in ("sockname", "peername"))
        log.info("leader.joined", model=self._setup.names[0], address=leader)
        return replace(self._setup, addresses=Addresses(own=own, leader=leader))

    async def _try(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """
        A connection over which it has said to begin; None where it is not there, has our rank already, or goes again.
        """
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(*self._place), _CONNECT_SECONDS)
        except OSError:  # TimeoutError is one
            return None
        keep_alive(writer)
        say(writer, self._hello)
        try:
            word = await hear(reader, NodeMessage)
        except asyncio.CancelledError:
            writer.close()
            raise
        if word is not None and word.word == "begin":
            return reader, writer
        writer.close()
        if word is not None and word.word == "refused":
            raise LoadError(f"rank 0 at {self._place[0]} refuses this node: {word.reason}")
        return None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (word := await hear(reader, NodeMessage)) is not None:
            if word.word == "started":
                self.has_started = True
        self._gone.set_result(f"rank 0 at {self._place[0]} is gone")

    @property
    def is_there(self) -> bool:
        """It was joined, and is not gone."""
        return self._writer is not None and not self._gone.done()

    def standing(self) -> Mapping[int, str]:
        """How it is: `awaited`, `here` or `gone`."""
        return {0: "gone" if self._gone.done() else "awaited" if self._writer is None else "here"}

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """The result of the work, unless it goes first; see `words.unless_gone`."""
        return await unless_gone(self._gone, work)

    def check(self) -> None:
        """Return at once when it is there.

        Raises:
            EngineDeadError: it is not.
        """
        require_there(self._gone)

    def leave(self, reason: str) -> None:
        """Let it know why we go; safe to call twice."""
        if self._listening is not None:
            self._listening.cancel()
        if self._writer is not None and not self._writer.is_closing():
            say(self._writer, NodeMessage("over", reason))
            self._writer.close()
