"""
What the machines of one model say to each other, as lines of JSON over a connection that each follower holds to rank 0.

vLLM tells neither side of the other's end: a follower would wait for work for ever, and rank 0 would notice with its
next request, or not even then. So the connection is the news: it ends with the engine on either side.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import socket
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import msgspec

from appliance.core.errors import EngineDeadError
from appliance.engines.vllm.engine_args import EngineSpec

T = TypeVar("T")

# A machine without power closes no connection; this is how soon that shows, in seconds.
_IDLE_SECONDS, _BETWEEN_SECONDS, _PROBES = 5, 5, 3


class Hello(msgspec.Struct, frozen=True):
    """The first line, a follower's: who it is, and a digest of what all must have alike."""

    rank: int
    digest: str


class NodeMessage(msgspec.Struct, frozen=True):
    """
    Any other line. Rank 0 says `begin` once all have come and `started` once the engine computes; to a rank that it has
    already `taken`, and to one that will never fit `refused`. A follower says `over` when it goes.
    """

    word: Literal["begin", "started", "taken", "refused", "over"]
    reason: str = ""


def digest(setup: EngineSpec) -> str:
    """SHA-256 of what must be alike on all machines; the rank, the devices and the way to rank 0 may differ."""
    alike = [
        version("appliance"),
        setup.names,
        setup.layout.model_dump(mode="json", exclude={"devices": True, "nodes": {"rank", "address"}}),
        setup.engine.model_dump(mode="json"),
        sorted(setup.adapters),
        setup.pooler and asdict(setup.pooler),
    ]
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()


def listen(port: int) -> list[socket.socket]:
    """Listening sockets on every address of this machine, of IPv4 and IPv6 as far as it has them.

    Raises:
        OSError: the port is taken, or may not be ours.
    """
    found, faults = [], []
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - the others are elsewhere
        try:
            found.append(socket.create_server((everywhere, port), family=family))
        except OSError as error:
            faults.append(error)
    taken = [error for error in faults if error.errno == errno.EADDRINUSE]
    if taken or not found:
        for each in found:
            each.close()
        raise (taken or faults)[0]
    return found


def say(writer: asyncio.StreamWriter, line: Hello | NodeMessage) -> None:
    """Send a line; to whoever is gone, nothing."""
    writer.write(msgspec.json.encode(line) + b"\n")


async def hear(reader: asyncio.StreamReader, kind: type[T]) -> T | None:
    """The next line; None at the end of the connection, and where it is no such line."""
    try:
        return msgspec.json.decode(await reader.readline(), type=kind)
    except (OSError, ValueError):
        return None


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the kernel look whether the other machine is still there."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _BETWEEN_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    # What was sent and never arrives would keep it from looking.
    most = _IDLE_SECONDS + _BETWEEN_SECONDS * _PROBES
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, most * 1000)


async def unless_gone(gone: asyncio.Future[str], work: asyncio.Future[T]) -> T:
    """The result of the work, unless a machine that it needs goes first.

    Raises:
        EngineDeadError: that is so, with the reason.
    """
    either: list[asyncio.Future[Any]] = [gone, work]  # Any: each has a result of its own
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        require_there(gone)
        return await work
    finally:
        work.cancel()


def require_there(gone: asyncio.Future[str]) -> None:
    """Return when no machine is gone.

    Raises:
        EngineDeadError: one is, with the reason.
    """
    if gone.done():
        raise EngineDeadError(gone.result())
