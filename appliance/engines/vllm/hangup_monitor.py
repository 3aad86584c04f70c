"""The connection from an engine to a front end that has not started it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_ADDRESS = "inproc://line"


class HangupMonitor:
    """Hears when the engine hangs up: of a process that another one has started, nothing else tells of its death."""

    def __init__(self, llm: AsyncLLM) -> None:
        import zmq

        resources = llm.engine_core.resources
        resources.output_socket.monitor(_ADDRESS, zmq.EVENT_DISCONNECTED)
        self._events = resources.ctx.socket(zmq.PAIR)
        self._events.connect(_ADDRESS)

    @property
    def is_cut(self) -> bool:
        """The engine, or one of its copies, has hung up."""
        return bool(self._events.poll(0))

    def close(self) -> None:
        """Listen no more; safe to call twice."""
        self._events.close(linger=0)
