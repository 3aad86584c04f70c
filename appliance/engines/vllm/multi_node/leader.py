"""The other machines of one model, as rank 0 sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import closing
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
    listen,
    require_there,
    say,
    unless_gone,
)
from appliance.engines.vllm.parallel_args import Addresses

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A follower speaks as soon as it is connected.
_HELLO_SECONDS = 10.0


class LeaderNode:
    """Awaited, told to start, and watched; none for a model of one machine, nor for one in Ray's cluster."""

    def __init__(self, setup: EngineSpec) -> None:
        self._setup = setup
        self._nodes = setup.layout.nodes
        self._here: dict[int, asyncio.StreamWriter] = {}
        self._lost: set[int] = set()
        self._are_complete = asyncio.Event()
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._servers: list[asyncio.Server] = []

    async def gather(self) -> EngineSpec:
        """Wait for all of them, for as long as it takes: they bring the model's bytes first.

        The setup with the addresses that they reach us by.

        Raises:
            LoadError: the port where they meet us is taken.
        """
        if self._nodes.count == 1:
            return self._setup
        try:
            for each in listen(self._nodes.port):
                self._servers.append(await asyncio.start_server(self._receive, sock=each))
        except OSError as error:
            raise LoadError(
                f"cannot listen on port {self._nodes.port} for the other nodes: {error.strerror}; "
                "choose another layout.nodes.port"
            ) from error
        log.info("nodes.awaited", model=self._setup.names[0], missing=self.missing, port=self._nodes.port)
        await self._are_complete.wait()
        for writer in self._here.values():
            say(writer, NodeMessage("begin"))
        own = next(iter(self._here.values())).get_extra_info("sockname")[0]
        return replace(self._setup, addresses=Addresses(own=own, leader=own))

    @property
    def missing(self) -> list[int]:
        """The ranks that have not come."""
        return sorted(set(range(1, self._nodes.count)) - self._here.keys())

    def standing(self) -> Mapping[int, str]:
        """How each of them is: `awaited`, `here` or `gone`; empty for a model of one machine."""
        ranks = range(1, self._nodes.count) if self._setup.layout.is_followed else ()
        return {rank: "gone" if rank in self._lost else "here" if rank in self._here else "awaited" for rank in ranks}

    async def unless_gone(self, work: asyncio.Future[T]) -> T:
        """The result of the work, unless one of them goes first; see `words.unless_gone`."""
        return await unless_gone(self._gone, work)

    def tell_started(self) -> None:
        """The engine computes, with the help of all of them."""
        for writer in self._here.values():
            say(writer, NodeMessage("started"))

    def check(self) -> None:
        """Return at once when all of them are there.

        Raises:
            EngineDeadError: one is gone.
        """
        require_there(self._gone)

    def close(self) -> None:
        """Let them go; safe to call twice."""
        for server in self._servers:
            server.close()
        for writer in self._here.values():
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            keep_alive(writer)
            try:
                hello = await asyncio.wait_for(hear(reader, Hello), _HELLO_SECONDS)
            except TimeoutError:
                return
            if hello is None:
                return
            if refusal := self._refusal(hello):
                log.warning("node.refused", model=self._setup.names[0], rank=hello.rank, reason=refusal.reason)
                say(writer, refusal)
                return
            await self._keep(hello.rank, reader, writer)

    def _refusal(self, hello: Hello) -> NodeMessage | None:
        if hello.digest != digest(self._setup):
            return NodeMessage(
                "refused", "its config of this model, or its version, is another; serve the same file on each"
            )
        return None if hello.rank in self.missing else NodeMessage("taken", "this rank is here already")

    async def _keep(self, rank: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._here[rank] = writer
        log.info("node.came", model=self._setup.names[0], rank=rank, missing=self.missing)
        if not self.missing:
            self._are_complete.set()
        last = await hear(reader, NodeMessage)
        if not self._are_complete.is_set():
            # It comes again, or another in its place.
            del self._here[rank]
            return
        self._lost.add(rank)
        if not self._gone.done():
            why = f": {last.reason}" if last is not None else ""
            self._gone.set_result(f"the node of rank {rank} is gone{why}")
