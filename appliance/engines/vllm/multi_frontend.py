"""Several front-end processes that share one engine: how they find it and each other, and notice its end."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.core.errors import LoadError
from appliance.core.file_lock import FileLock
from appliance.core.model import FrontEnd

if TYPE_CHECKING:
    import zmq
    from vllm.v1.engine.async_llm import AsyncLLM

_POLL_SECONDS = 0.05

_NAME_CHARACTERS = 12

_MONITOR_ADDRESS = "inproc://engine-monitor"

# What one front end would keep to itself, while the next request may go to another.
_PER_PROCESS_FEATURES = ("VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")


class FrontendRendezvous:
    """How the front ends of one engine find it and each other: in files, since they are forked before it exists.

    The host starts the engine. vLLM tells each front end once that the engine is ready, so none can join later or
    again. A single front end is a host without others, and writes no files.
    """

    def __init__(self, front_end: FrontEnd, model: str) -> None:
        folder = front_end.folder
        self.number, self.count = (0, 1) if folder is None else (front_end.number, front_end.count)
        self.is_host = self.number == 0
        """Whether this front end starts the engine, and ends it."""
        self.is_shared = self.count > 1
        # The path of a Unix socket has about a hundred bytes, and a model's name may have more, and slashes.
        self._stem = stem = (folder or Path()) / sha256(model.encode()).hexdigest()[:_NAME_CHARACTERS]
        self.heartbeat_file = stem.with_suffix(".heartbeat")
        self._status_file = stem.with_suffix(".status")
        self._members_file = stem.with_suffix(".members")
        self._membership: FileLock | None = None
        self._disconnects: zmq.Socket[bytes] | None = None

    def addresses(self, number: int) -> tuple[str, str]:
        """Return where the front end of this number listens for the engine: for requests, and for outputs."""
        return f"ipc://{self._stem}.{number}.in", f"ipc://{self._stem}.{number}.out"

    def require_shareable(self) -> None:
        """Raise LoadError if the environment asks for a feature that several front ends cannot have."""
        for name in _PER_PROCESS_FEATURES if self.is_shared else ():
            if os.environ.get(name, "0") not in ("", "0"):
                raise LoadError(f"{name} is set, and server.workers is not 1; unset it, or have one worker")

    def announce_ready(self, stats_address: str | None) -> None:
        """Let the others join; `stats_address` is where copies of the engine publish their load."""
        self._announce({"stats_address": stats_address})

    def announce_failure(self, reason: str) -> None:
        """Let the others fail: there is no engine to join."""
        self._announce({"error": reason})

    def client_arguments(self, raise_if_killed: Callable[[], None]) -> dict[str, Any]:  # Any: vLLM's argument values
        """Return the arguments of vLLM's client; one that is not the host waits here for the engine, and joins it.

        Raises:
            LoadError: the host has no engine; `raise_if_killed` raises when the wait is to end.
        """
        if self.is_host:
            return {"client_count": self.count}
        stats_address = self.join(raise_if_killed)
        requests, outputs = self.addresses(self.number)
        addresses = {"input_address": requests, "output_address": outputs}
        if stats_address is not None:
            addresses["stats_update_address"] = stats_address
        return {"client_addresses": addresses, "client_count": self.count, "client_index": self.number}

    def join(self, raise_if_killed: Callable[[], None]) -> str | None:
        """Wait for the engine and become a member, see `client_arguments`; returns the address of its statistics."""
        while not self._status_file.exists():
            raise_if_killed()
            time.sleep(_POLL_SECONDS)
        status = json.loads(self._status_file.read_text())
        if "error" in status:
            raise LoadError(status["error"])
        # The host holds the exclusive lock for a moment when it checks for members.
        while (membership := FileLock.try_acquire(self._members_file, shared=True)) is None:
            time.sleep(_POLL_SECONDS)
        self._membership = membership
        stats_address: str | None = status["stats_address"]
        return stats_address

    def monitor(self, llm: AsyncLLM) -> None:
        """Watch the connection to the engine of another process: nothing else tells of its death."""
        if self.is_host:
            return
        import zmq

        resources = llm.engine_core.resources
        resources.output_socket.monitor(_MONITOR_ADDRESS, zmq.EVENT_DISCONNECTED)
        self._disconnects = resources.ctx.socket(zmq.PAIR)
        self._disconnects.connect(_MONITOR_ADDRESS)

    @property
    def is_disconnected(self) -> bool:
        """Whether the engine that was joined, or one of its copies, has closed its connection."""
        return self._disconnects is not None and bool(self._disconnects.poll(0))

    def leave(self) -> None:
        """End the membership; safe to call twice."""
        if self._disconnects is not None:
            self._disconnects.close(linger=0)
        if self._membership is not None:
            self._membership.close()

    async def wait_for_others(self) -> None:
        """As the host, wait until the others have left: their requests need the engine."""
        while self.is_host and self.is_shared and self._has_members():  # noqa: ASYNC110 - a lock of other processes
            await asyncio.sleep(_POLL_SECONDS)

    def _has_members(self) -> bool:
        if (lock := FileLock.try_acquire(self._members_file)) is None:
            return True
        lock.close()
        return False

    def _announce(self, status: object) -> None:
        if self.is_host and self.is_shared:
            self.heartbeat_file.touch()
            draft = self._stem.with_suffix(".draft")
            draft.write_text(json.dumps(status))
            draft.replace(self._status_file)
