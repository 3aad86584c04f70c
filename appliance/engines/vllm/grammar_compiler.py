"""The child process of `GrammarCheck`: compiles grammars as the engine would, each in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import select
import signal
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from appliance.core.system import die_with_parent

if TYPE_CHECKING:
    from vllm.config import VllmConfig

LENGTH_BYTES = 4

# Address space of a compilation beside what the process has when it begins.
_MEMORY_BYTES = 4 * 1024**3

# What xgrammar puts before its messages: the time, and the line of its source.
_PLACE = re.compile(r"^\[[\d:]+\] \S+: ")

_LONGEST_REASON = 300


def serve(*, vllm_config: VllmConfig, control: socket.socket, seconds: float) -> None:
    """Answer the requests whose sockets arrive on `control`, one after the other, until its other end is closed.

    Each has `seconds` of CPU time, so that a busy machine refuses no more than an idle one.
    """
    compiler = _Compiler(vllm_config)
    parent = os.getpid()
    while connection := _next(control):
        with connection:
            child = os.fork()
            if not child:
                die_with_parent()
                # It may have died before the kernel knew whom to tell.
                if os.getppid() != parent:
                    os._exit(1)
                _answer(compiler, connection, seconds)
            _, status = os.waitpid(child, 0)
            if status:
                is_slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
                # The client may have left.
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps({"fault": "slow" if is_slow else "crash"}).encode())


def _next(control: socket.socket) -> socket.socket | None:
    _, descriptors, *_ = socket.recv_fds(control, 1, 1)
    return socket.socket(fileno=descriptors[0]) if descriptors else None


def _answer(compiler: _Compiler, connection: socket.socket, seconds: float) -> NoReturn:
    """Compile what the request holds, and end the process."""
    try:
        length = int.from_bytes(_read(connection, LENGTH_BYTES), "big")
        request = json.loads(_read(connection, length))
        _end_with(connection)
        _limit(seconds)
        connection.sendall(json.dumps(compiler.check(**request)).encode())
    except BaseException:
        os._exit(1)
    os._exit(0)


def _read(connection: socket.socket, length: int) -> bytes:
    data = connection.recv(length, socket.MSG_WAITALL)
    if len(data) < length:
        raise EOFError
    return data


def _end_with(connection: socket.socket) -> None:
    """Have the kernel end this process with SIGIO when the client closes its socket."""
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    # It may have been closed before.
    if select.select([connection], [], [], 0)[0]:
        raise EOFError


def _limit(seconds: float) -> None:
    """Have the kernel end this process with SIGPROF after so much CPU time, and give it no more than its memory."""
    most = psutil.Process().memory_info().vms + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, seconds)


class _Compiler:
    """vLLM's backends for structured outputs, with the model's vocabulary."""

    def __init__(self, config: VllmConfig) -> None:
        from vllm.v1.structured_output import StructuredOutputManager

        self._config = config.structured_outputs_config
        self._model_config = config.model_config
        self._manager = StructuredOutputManager(config)
        self._manager._use_async_grammar_compilation = False
        self._backends: dict[str, Any] = {}  # Any: vLLM's backends
        # Loaded once, for all processes to come.
        self._backend("xgrammar" if self._config.backend == "auto" else self._config.backend)

    def check(self, *, constraint: dict[str, Any], backend: str | None) -> dict[str, str]:
        """The backend that compiled the constraint, or the reason why it does not compile.

        `backend` is what the engine has; None where it has none yet, and gets the one vLLM chooses for this constraint.
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
        # Engines of several front ends, or copies, may have taken it for the first of their requests.
        if self._config.backend == "auto" and backend != "xgrammar":
            with contextlib.suppress(Exception):
                self._backend("xgrammar").compile_grammar(*key)
        try:
            self._backend(backend).compile_grammar(*key)
        except Exception as error:
            reason = _PLACE.sub("", str(error)).strip().partition("\n")[0]
            return {"fault": "invalid", "reason": reason[:_LONGEST_REASON] or type(error).__name__}
        return {"backend": backend}

    def _backend(self, name: str) -> Any:  # Any: vLLM's backends
        if name not in self._backends:
            self._backends[name] = self._load(name)
        return self._backends[name]

    def _load(self, name: str) -> Any:  # Any: vLLM's backends
        """A backend as vLLM makes it for its first request."""
        from vllm.sampling_params import StructuredOutputsParams
        from vllm.v1.structured_output.request import StructuredOutputRequest

        params = StructuredOutputsParams(json_object=True)
        params._backend = name
        request = SimpleNamespace(
            structured_output_request=StructuredOutputRequest(params=params),
            sampling_params=SimpleNamespace(structured_outputs=params, all_stop_token_ids=None),
            request_id="first",
        )
        self._manager.backend = None
        self._manager.grammar_init(request)
        backend: Any = self._manager.backend
        if name == "xgrammar":
            import xgrammar

            # One thread: the cores belong to the engine.
            vocabulary = request.structured_output_request.grammar.ctx.tokenizer_info
            backend.compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
        return backend
