"""The connections between the nodes of one model: lines of JSON over TCP, which each worker holds to rank 0.

vLLM tells neither side when the other one ends: a worker would wait for work for ever, and rank 0 would notice with its
next request, or not even then. So the connection tells: it ends with the engine on either side.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar

import msgspec
import structlog

from appliance.core.distribution import version
from appliance.core.errors import EngineDeadError, LoadError
from appliance.engines.vllm.engine_args import EngineSpec, NodeAddresses

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A worker sends its first line as soon as it is connected.
_HELLO_SECONDS = 10.0

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.5

# A machine without power closes no connection; TCP keep-alive finds it out in 20 seconds: 3 probes, 5 seconds apart.
# The kernel sends no probes while data waits for its acknowledgement, so that has a timeout, in milliseconds.
_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,
}


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line.

    A worker's first one is a hello with its rank, and a digest of what must be the same on all nodes. Rank 0 answers it
    with `taken` if the rank is connected already, and with `refused` if the worker can never join. It sends `begin`
    once all workers are connected, and `started` once the engine computes. A worker sends `over` before it ends.
    """

    type: Literal["hello", "begin", "started", "taken", "refused", "over"] = "hello"
    reason: str = ""
    rank: int = 0
    digest: str = ""


class _Node:
    """What both sides share: the loss of the other side."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._nodes = spec.layout.nodes
        self._loss: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def check(self) -> None:
        """Raise EngineDeadError with the reason if a node is lost."""
        if self._loss.done():
            raise EngineDeadError(self._loss.result())

    async def unless_lost(self, work: asyncio.Future[T]) -> T:
        """Return the result of the work; cancel it and raise EngineDeadError if a node is lost first."""
        either: list[asyncio.Future[Any]] = [self._loss, work]  # Any: each has a result of its own
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            _Node.check(self)
            return await work
        finally:
            work.cancel()


class LeaderNode(_Node):
    """Rank 0: it waits for the workers and watches them; without workers, and in a Ray cluster, it does nothing."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._connected: dict[int, asyncio.StreamWriter] = {}
        self._lost: set[int] = set()
        self._is_complete = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def wait_for_workers(self) -> EngineSpec:
        """Wait until all workers have the model and are connected; return the spec with the addresses of the nodes."""
        if self._nodes.count == 1:
            return self._spec
        port = self._nodes.port
        try:
            # On every address of this machine.
            self._server = await asyncio.start_server(self._accept, None, port)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise LoadError(
                f"cannot listen on port {port} for the other nodes: {reason}; choose another layout.nodes.port"
            ) from error
        log.info("node.waiting", model=self._spec.name, missing=self.missing, port=port)
        await self._is_complete.wait()
        self.announce("begin")
        own = next(iter(self._connected.values())).get_extra_info("sockname")[0]
        return replace(self._spec, addresses=NodeAddresses(own=own, leader=own))

    @property
    def missing(self) -> list[int]:
        return sorted(set(range(1, self._nodes.count)) - self._connected.keys())

    def states(self) -> Mapping[int, str]:
        """Return the state of each worker, `waiting`, `connected` or `disconnected`, by rank."""
        ranks = range(1, self._nodes.count) if self._spec.layout.is_leader_node else ()
        return {
            rank: "disconnected" if rank in self._lost else "connected" if rank in self._connected else "waiting"
            for rank in ranks
        }

    def announce(self, step: Literal["begin", "started"]) -> None:
        for writer in self._connected.values():
            _send(writer, Message(step))

    def close(self) -> None:
        """Disconnect all workers; safe to call twice."""
        if self._server is not None:
            self._server.close()
        for writer in self._connected.values():
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            _set_keep_alive(writer)
            hello = None
            with suppress(TimeoutError):
                hello = await asyncio.wait_for(_receive(reader), _HELLO_SECONDS)
            if hello is None:
                return
            refusal = None
            if hello.digest != _digest(self._spec):
                reason = "its config of this model, or its version, is another; serve the same file on each"
                refusal = Message("refused", reason)
            elif hello.rank not in self.missing:
                refusal = Message("taken", "this rank is here already")
            if refusal is None:
                await self._watch(hello.rank, reader, writer)
            else:
                log.warning("node.rejected", model=self._spec.name, rank=hello.rank, reason=refusal.reason)
                _send(writer, refusal)

    async def _watch(self, rank: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected[rank] = writer
        log.info("node.connected", model=self._spec.name, rank=rank, missing=self.missing)
        if not self.missing:
            self._is_complete.set()
        last = await _receive(reader)
        if not self._is_complete.is_set():
            # Nothing has begun: it, or another node of its rank, may connect again.
            del self._connected[rank]
            return
        self._lost.add(rank)
        if not self._loss.done():
            reason = f": {last.reason}" if last is not None else ""
            self._loss.set_result(f"the node of rank {rank} is gone{reason}")


class WorkerNode(_Node):
    """A worker: it connects to rank 0, and watches it."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self.has_started = False
        """Whether the engine of rank 0 computes, with this node."""
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def join(self) -> EngineSpec:
        """Wait until rank 0 has all workers; return the spec with the addresses of the nodes."""
        log.info("leader.waiting", model=self._spec.name, address=self._nodes.address, port=self._nodes.port)
        while (connection := await self._connect()) is None:  # noqa: ASYNC110 - rank 0 cannot wake us before it runs
            await asyncio.sleep(_RETRY_SECONDS)
        reader, self._writer = connection
        self._reading = asyncio.create_task(self._read(reader))
        own, leader = (self._writer.get_extra_info(side)[0] for side in ("sockname", "peername"))
        log.info("leader.connected", model=self._spec.name, address=leader)
        return replace(self._spec, addresses=NodeAddresses(own=own, leader=leader))

    @property
    def is_connected(self) -> bool:
        """Whether rank 0 was joined, and is not lost."""
        return self._writer is not None and not self._loss.done()

    def states(self) -> Mapping[int, str]:
        """Return the state of rank 0: `waiting`, `connected` or `disconnected`."""
        return {0: "disconnected" if self._loss.done() else "waiting" if self._writer is None else "connected"}

    def leave(self, reason: str) -> None:
        """Send rank 0 the reason why this node ends, and disconnect; safe to call twice."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None and not self._writer.is_closing():
            _send(self._writer, Message("over", reason))
            self._writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return a connection over which rank 0 has sent `begin`; None to try again."""
        try:
            connecting = asyncio.open_connection(self._nodes.address, self._nodes.port)
            reader, writer = await asyncio.wait_for(connecting, _CONNECT_SECONDS)
        except OSError:  # TimeoutError is one
            return None
        _set_keep_alive(writer)
        _send(writer, Message(rank=self._nodes.rank, digest=_digest(self._spec)))
        message = None
        try:
            message = await _receive(reader)
        finally:
            if message is None or message.type != "begin":
                writer.close()
        if message is not None and message.type == "refused":
            raise LoadError(f"rank 0 at {self._nodes.address} refuses this node: {message.reason}")
        return (reader, writer) if message is not None and message.type == "begin" else None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while (message := await _receive(reader)) is not None:
            if message.type == "started":
                self.has_started = True
        self._loss.set_result(f"rank 0 at {self._nodes.address} is gone")


def _digest(spec: EngineSpec) -> str:
    """Return the SHA-256 of what must be the same on all nodes; rank, devices and rank 0's address may differ."""
    common = [
        version(),
        spec.name,
        spec.layout.model_dump(mode="json", exclude={"devices": True, "nodes": {"rank", "address"}}),
        spec.engine.model_dump(mode="json"),
        sorted(spec.lora_adapters),
        spec.pooler and asdict(spec.pooler),
    ]
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")


async def _receive(reader: asyncio.StreamReader) -> Message | None:
    """Return the next line; None at the end of the connection, or if it is no such line."""
    try:
        return msgspec.json.decode(await reader.readline(), type=Message)
    except (OSError, ValueError):
        return None


def _set_keep_alive(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
