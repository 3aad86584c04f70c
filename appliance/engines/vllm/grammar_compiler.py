"""The process of `StructuredOutputsCheck`: compiles constraints as the engine would, each in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from appliance.core.child_process import end_with_parent, limit_resources
from appliance.engines.vllm import patches

if TYPE_CHECKING:
    from vllm.config import VllmConfig

LENGTH_BYTES = 4

# Address space of a compilation beside what the process has when it begins.
_MEMORY_BYTES = 4 * 1024**3

# What xgrammar puts before its messages: the time, and the line of its source.
_MESSAGE_PREFIX = re.compile(r"^\[[\d:]+\] \S+: ")

_MAX_REASON_CHARACTERS = 300


def serve(*, vllm_config: VllmConfig, control: socket.socket, seconds: float) -> None:
    """Answer the requests whose sockets arrive on `control`, one after the other, until its other end is closed.

    Each has `seconds` of CPU time and not of the clock, so that a busy machine refuses no more than an idle one.
    """
    compiler = _Compiler(vllm_config)
    parent = os.getpid()
    while descriptors := socket.recv_fds(control, 1, 1)[1]:
        with socket.socket(fileno=descriptors[0]) as connection:
            child = os.fork()
            if not child:
                end_with_parent(parent)
                _answer(compiler, connection, seconds)
            _, status = os.waitpid(child, 0)
            if status:
                is_slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
                # The client may have left.
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps({"fault": "slow" if is_slow else "crash"}).encode())


def _answer(compiler: _Compiler, connection: socket.socket, seconds: float) -> NoReturn:
    """Compile the constraint of one request, and end the process."""
    try:
        stream = connection.makefile("rb")
        request = json.loads(stream.read(int.from_bytes(stream.read(LENGTH_BYTES), "big")))
        # The kernel ends this process with SIGIO when the client closes its socket.
        fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
        # It may have been closed before.
        if not select.select([connection], [], [], 0)[0]:
            memory_bytes = psutil.Process().memory_info().vms + _MEMORY_BYTES
            limit_resources(memory_bytes=memory_bytes, cpu_seconds=seconds)
            connection.sendall(json.dumps(compiler.check(**request)).encode())
            os._exit(0)
    finally:
        os._exit(1)


class _Compiler:
    """vLLM's backends for structured outputs, with the model's vocabulary."""

    def __init__(self, config: VllmConfig) -> None:
        from vllm.v1.structured_output import StructuredOutputManager

        self._config = config.structured_outputs_config
        self._model_config = config.model_config
        self._manager = StructuredOutputManager(config)
        self._backends: dict[str, Any] = {}  # Any: vLLM's backends
        # Loaded once, for all forks.
        self._backend("xgrammar" if self._config.backend == "auto" else self._config.backend)

    def check(self, *, constraint: dict[str, Any], backend: str | None) -> dict[str, str]:
        """Return the backend that compiled the constraint, or the reason why it does not compile.

        `backend` is the engine's; None if it has none yet, and takes the one that vLLM chooses for this constraint.
        """
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams
        from vllm.v1.structured_output.request import get_structured_output_key

        params = SamplingParams(structured_outputs=StructuredOutputsParams(**constraint))
        try:
            params._validate_structured_outputs(self._model_config, self._config, self._manager.tokenizer)
        except VLLMValidationError:
            # vLLM refuses it before the engine sees it, and says why.
            return {}
        backend = backend or params.structured_outputs._backend
        key = get_structured_output_key(params.structured_outputs)
        # Engines of several front ends, and copies, may have taken xgrammar for an earlier request.
        if self._config.backend == "auto" and backend != "xgrammar":
            with contextlib.suppress(Exception):
                self._backend("xgrammar").compile_grammar(*key)
        try:
            self._backend(backend).compile_grammar(*key)
        except Exception as error:
            reason = _MESSAGE_PREFIX.sub("", str(error)).strip().partition("\n")[0]
            return {"fault": "invalid", "reason": reason[:_MAX_REASON_CHARACTERS] or type(error).__name__}
        return {"backend": backend}

    def _backend(self, name: str) -> Any:  # Any: vLLM's backends
        if name not in self._backends:
            self._backends[name] = patches.load_grammar_backend(self._manager, name)
        return self._backends[name]
