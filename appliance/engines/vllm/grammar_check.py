"""A deadline for the compilation of grammars, which vLLM does not have.

Each new schema, grammar or regular expression is compiled once in another process before the engine gets it: the engine
compiles those of all requests one after the other, and cannot stop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import structlog

from appliance.core.errors import RequestError, UnavailableError
from appliance.engines.vllm.fork_server import ForkServer, Spawning
from appliance.engines.vllm.grammar_compiler import LENGTH_BYTES, serve

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from vllm.config import VllmConfig

log: structlog.stdlib.BoundLogger = structlog.get_logger()

PROCESS_NAME = "grammar-check"
"""
Processes of this name belong to no engine: it lives on without them.
"""

# CPU time in which nearly every grammar compiles; what needs more waits in a line of its own.
_QUICK_SECONDS = 2.0

_MOST_VERDICTS = 1_024

_PARAM = "response_format"

Verdict = Mapping[str, str]


class GrammarCheck:
    """What is known of the grammars of one engine, and the processes that find it out, started when they are needed."""

    def __init__(self, context: ForkServer | Spawning, config: VllmConfig, seconds: float) -> None:
        """`seconds` of CPU time are what one grammar may take."""
        self._seconds = seconds
        self._has_no_tokenizer = config.model_config.skip_tokenizer_init
        self._lanes = [_Lane(context, config, most) for most in sorted({min(seconds, _QUICK_SECONDS), seconds})]
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._backend: str | None = None

    async def require_compilable(self, constraint: Any) -> None:  # Any: vLLM's parameters
        """Return when the constraint is known to compile in time, or when vLLM refuses it by itself.

        Raises:
            RequestError: it does not compile, or not in time.
            UnavailableError: there is no process to find out.
        """
        # vLLM refuses what it has no tokenizer for.
        if constraint is None or self._has_no_tokenizer:
            return
        fields = {field.name: getattr(constraint, field.name) for field in dataclasses.fields(constraint)}
        given = {name: value for name, value in fields.items() if value is not None and not name.startswith("_")}
        key = sha256(json.dumps(given).encode()).digest()
        # Requests with the same grammar wait for one compilation.
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            verdict = self._verdicts.get(key)
            if verdict is None:
                verdict = self._verdicts[key] = await self._ask(given)
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > _MOST_VERDICTS:
                self._verdicts.popitem(last=False)
        self._require_good(verdict)

    def close(self) -> None:
        """End the processes."""
        for lane in self._lanes:
            lane.close()

    async def _ask(self, constraint: Mapping[str, Any]) -> Verdict:
        request = json.dumps({"constraint": constraint, "backend": self._backend}).encode()
        for lane in self._lanes:
            verdict = await lane.ask(request)
            if verdict.get("fault") != "slow":
                break
        # The engine keeps the backend of its first grammar.
        self._backend = self._backend or verdict.get("backend")
        return verdict

    def _require_good(self, verdict: Verdict) -> None:
        fault = verdict.get("fault")
        if fault is None:
            return
        if fault == "invalid":
            raise RequestError(
                f"The schema or grammar cannot be compiled: {verdict['reason']}", param=_PARAM, code="schema_invalid"
            )
        takes = f"{self._seconds:g} seconds" if fault == "slow" else "the memory or depth there is"
        raise RequestError(
            f"The schema or grammar is too complex: to compile, it takes more than {takes}. Give it fewer properties, "
            "values and alternatives, less depth, or smaller bounds, such as maxLength and maxItems.",
            param=_PARAM,
            code="schema_too_complex",
        )


class _Lane:
    """One process that compiles grammars, one after the other, in at most so many seconds of CPU time each."""

    def __init__(self, context: ForkServer | Spawning, config: VllmConfig, seconds: float) -> None:
        self._context = context
        self._config = config
        self._seconds = seconds
        # The line is here, so that who leaves it is gone.
        self._turn = asyncio.Lock()
        self._process: BaseProcess | None = None
        self._control: socket.socket | None = None

    async def ask(self, request: bytes) -> Verdict:
        """What the process says of this request; to be cancelled ends the compilation.

        Raises:
            UnavailableError: it has ended.
        """
        async with self._turn:
            answer = await self._exchange(request)
        if not answer:
            log.warning("grammar_check.ended")
            self.close()
            raise UnavailableError(
                "Schemas and grammars cannot be checked at the moment.", retry_after=1, code="grammar_check_ended"
            )
        verdict: Verdict = json.loads(answer)
        return verdict

    def close(self) -> None:
        """End the process, and what it is at."""
        process, self._process = self._process, None
        control, self._control = self._control, None
        if process is not None and control is not None:
            process.kill()
            control.close()

    async def _exchange(self, request: bytes) -> bytes:
        """The answer; empty when the process ended before it gave one."""
        try:
            mine, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._connected(), [b"."], [theirs.fileno()])
            reader, writer = await asyncio.open_unix_connection(sock=mine)
            try:
                writer.write(len(request).to_bytes(LENGTH_BYTES, "big") + request)
                return await reader.read()
            finally:
                # Closed at once, whatever has not been sent.
                writer.transport.abort()
        except OSError:
            return b""

    def _connected(self) -> socket.socket:
        """The socket of the process, which is started where there is none."""
        if self._process is None or self._control is None or not self._process.is_alive():
            self.close()
            self._control, theirs = socket.socketpair()
            with theirs:
                arguments = {"vllm_config": self._config, "control": theirs, "seconds": self._seconds}
                self._process = self._context.Process(target=serve, name=PROCESS_NAME, kwargs=arguments)
                self._process.start()
        return self._control
