"""Limits of what an output is constrained to: a JSON Schema, a grammar, a regular expression, choices.

The engine compiles the constraints of all requests one after the other, and cannot stop. So a constraint is checked
for its size and its references first, and then compiled once in another process, with a limit of CPU time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import re
import select
import signal
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote
from weakref import WeakValueDictionary

import psutil
import structlog

from appliance.config.engine import StructuredOutputsConfig
from appliance.core.child_process import end_with_parent, limit_resources
from appliance.core.errors import RequestError, UnavailableError
from appliance.engines.vllm import patches
from appliance.engines.vllm.fork_server import GRAMMAR_PROCESS, ForkServer, SpawnContext

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from vllm.config import VllmConfig

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# CPU time in which nearly every grammar compiles; one that takes longer waits in a queue of its own.
_QUICK_SECONDS = 2.0

_MAX_VERDICTS = 1_024

_PARAM = "response_format"

# Keywords of a schema whose values are data, whatever they look like.
_DATA_KEYWORDS = frozenset({"const", "default", "enum", "examples"})

# Keywords whose values are schemas by names of the client's own.
_NAMED_SCHEMAS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})

# Keys of a structural tag whose values are schemas.
_TAG_SCHEMAS = ("json_schema", "schema")

_GRAMMAR_RULE = re.compile(r"^[ \t]*+([\w-]++)[ \t]*+::=", re.MULTILINE)

# Characters of a client's own words in a message.
_MAX_QUOTED = 100

_LENGTH_BYTES = 4

# Address space of a compilation beside what the process has when it begins.
_MEMORY_BYTES = 4 * 1024**3

# What xgrammar puts before its messages: the time, and the line of its source.
_MESSAGE_PREFIX = re.compile(r"^\[[\d:]+\] \S+: ")

_MAX_REASON_CHARACTERS = 300

Verdict = Mapping[str, str]
"""The answer of the process that compiles: `backend`, or `fault` with a `reason`."""


def require_small(constraint: Any, limits: StructuredOutputsConfig) -> None:  # Any: vLLM's parameters
    """Raise RequestError if the constraint is too large, or a reference leads nowhere: vLLM would write no text."""
    if constraint is None:
        return
    schema = constraint.json if constraint.json is not None else constraint.structural_tag
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    texts = [text, constraint.regex or "", constraint.grammar or "", *(constraint.choice or ())]
    _require_at_most(limits.max_bytes, sum(len(each.encode(errors="surrogatepass")) for each in texts), "bytes")
    _require_at_most(limits.max_enum_values, len(constraint.choice or ()), "choices")
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError):
        # vLLM refuses it, and says why.
        value = None
    sizes = Counter[str]()
    for each in _objects(value):
        sizes["properties"] += len(each["properties"]) if isinstance(each.get("properties"), dict) else 0
        sizes["enum"] += len(each["enum"]) if isinstance(each.get("enum"), list) else 0
    _require_at_most(limits.max_properties, sizes["properties"], "properties")
    _require_at_most(limits.max_enum_values, sizes["enum"], "values of enumerations")
    if constraint.json is not None:
        _require_references(value)
    else:
        # Each schema of a structural tag is one of its own.
        for tag in _objects(value, _without_schemas):
            for name in _TAG_SCHEMAS:
                _require_references(tag.get(name))
    for name, count in Counter(_GRAMMAR_RULE.findall(constraint.grammar or "")).items():
        if count > 1:
            raise _invalid(f"The grammar defines the rule {name[:_MAX_QUOTED]!r} {count} times; define it once")


def _require_at_most(limit: int, size: int, unit: str) -> None:
    if size > limit:
        raise RequestError(
            f"The schema, grammar or list of choices has {size} {unit}; this model takes {limit} at most.",
            param=_PARAM,
            code="schema_too_large",
        )


def _invalid(message: str) -> RequestError:
    return RequestError(message, param=_PARAM, code="schema_invalid")


def _objects(
    value: Any, children: Callable[[dict[str, Any]], Iterable[Any]] = dict.values
) -> Iterator[dict[str, Any]]:  # Any: JSON values, here and below
    """Yield the objects at any depth, going from each to its `children`."""
    rest = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest.extend(value)
        elif isinstance(value, dict):
            yield value
            rest.extend(children(value))


def _without_schemas(tag: dict[str, Any]) -> Iterator[Any]:
    return (member for name, member in tag.items() if name not in _TAG_SCHEMAS)


def _subschemas(schema: dict[str, Any]) -> Iterator[Any]:
    for name, member in schema.items():
        if name in _NAMED_SCHEMAS and isinstance(member, dict):
            yield from member.values()
        elif name not in _DATA_KEYWORDS:
            yield member


def _require_references(schema: Any) -> None:
    """Raise RequestError if a `$ref` leads out of the schema, to nothing, or only to other references."""
    followed: set[int] = set()
    for holder in _objects(schema, _subschemas):
        value, path = holder, set[int]()
        while isinstance(reference := value.get("$ref") if isinstance(value, dict) else None, str):
            if id(value) in followed:
                break
            path.add(id(value))
            value = _resolve(schema, reference)
            if id(value) in path:
                name = holder["$ref"][:_MAX_QUOTED]
                raise _invalid(f"The schema's $ref {name!r} leads back to itself, and to no schema")
        followed |= path


def _resolve(schema: Any, reference: str) -> Any:
    if reference != "#" and not reference.startswith("#/"):
        raise _invalid(
            f"The schema's $ref {reference[:_MAX_QUOTED]!r} leads outside of it; write what it stands for under $defs, "
            "and begin the reference with #/"
        )
    value = schema
    try:
        for part in unquote(reference).split("/")[1:]:
            value = value[int(part) if isinstance(value, list) else part.replace("~1", "/").replace("~0", "~")]
    except (LookupError, TypeError, ValueError) as error:
        raise _invalid(f"The schema's $ref {reference[:_MAX_QUOTED]!r} leads to nothing in it") from error
    return value


class StructuredOutputsCheck:
    """Checks the constraints of one engine's requests; remembers the verdicts, and starts processes when needed."""

    def __init__(self, context: ForkServer | SpawnContext, config: VllmConfig, limits: StructuredOutputsConfig) -> None:
        self._limits = limits
        self._has_tokenizer = not config.model_config.skip_tokenizer_init
        seconds = sorted({min(limits.compile_seconds, _QUICK_SECONDS), limits.compile_seconds})
        self._processes = [_CompilerProcess(context, config, each) for each in seconds]
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._backend: str | None = None

    async def require_allowed(self, constraint: Any) -> None:  # Any: vLLM's parameters
        """Return if the engine may compile the constraint, None included; raises RequestError if not.

        UnavailableError means that there is no process to check it.
        """
        require_small(constraint, self._limits)
        await self.require_compilable(constraint)

    async def require_compilable(self, constraint: Any) -> None:  # Any: vLLM's parameters
        """Return when the constraint is known to compile in time, or when vLLM will refuse it by itself."""
        # Without a tokenizer vLLM refuses every constraint.
        if constraint is None or not self._has_tokenizer:
            return
        fields = {field.name: getattr(constraint, field.name) for field in dataclasses.fields(constraint)}
        fields = {name: value for name, value in fields.items() if value is not None and not name.startswith("_")}
        key = sha256(json.dumps(fields).encode()).digest()
        # Requests with the same constraint wait for one compilation.
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            verdict = self._verdicts.get(key)
            if verdict is None:
                verdict = self._verdicts[key] = await self._compile(fields)
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > _MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        fault = verdict.get("fault")
        if fault == "invalid":
            raise _invalid(f"The schema or grammar cannot be compiled: {verdict['reason']}")
        if fault is not None:
            limit = f"{self._limits.compile_seconds:g} seconds" if fault == "slow" else "the memory or depth there is"
            raise RequestError(
                f"The schema or grammar is too complex: to compile, it takes more than {limit}. Give it fewer "
                "properties, values and alternatives, less depth, or smaller bounds, such as maxLength and maxItems.",
                param=_PARAM,
                code="schema_too_complex",
            )

    def close(self) -> None:
        for process in self._processes:
            process.close()

    async def _compile(self, constraint: Mapping[str, Any]) -> Verdict:  # Any: JSON values
        request = json.dumps({"constraint": constraint, "backend": self._backend}).encode()
        for process in self._processes:
            verdict = await process.compile(request)
            if verdict.get("fault") != "slow":
                break
        # The engine keeps the backend of its first constraint.
        self._backend = self._backend or verdict.get("backend")
        return verdict


class _CompilerProcess:
    """A process that compiles constraints one after the other, each within a limit of CPU time."""

    def __init__(self, context: ForkServer | SpawnContext, config: VllmConfig, seconds: float) -> None:
        self._context = context
        self._config = config
        self._seconds = seconds
        # Requests wait here and not in the process, so that a client that leaves is out of the queue.
        self._turn = asyncio.Lock()
        self._process: BaseProcess | None = None
        self._control: socket.socket | None = None

    async def compile(self, request: bytes) -> Verdict:
        """Return the verdict on a request; cancelling this ends the compilation."""
        async with self._turn:
            response = await self._exchange(request)
        if not response:
            log.warning("grammar_check.process_died")
            self.close()
            raise UnavailableError(
                "Schemas and grammars cannot be checked at the moment.", retry_after=1, code="grammar_check_ended"
            )
        verdict: Verdict = json.loads(response)
        return verdict

    def close(self) -> None:
        if self._process is not None and self._control is not None:
            self._process.kill()
            self._control.close()
        self._process = self._control = None

    async def _exchange(self, request: bytes) -> bytes:
        """Return the response, empty if the process died before it."""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._connected(), [b"."], [theirs.fileno()])
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                writer.write(len(request).to_bytes(_LENGTH_BYTES, "big") + request)
                return await reader.read()
            finally:
                # Not `close`, which would send the rest of the request first.
                writer.transport.abort()
        except OSError:
            return b""

    def _connected(self) -> socket.socket:
        """Return the socket of the process, after starting it where there is none."""
        if self._process is None or self._control is None or not self._process.is_alive():
            self.close()
            self._control, theirs = socket.socketpair()
            with theirs:
                kwargs = {"vllm_config": self._config, "control": theirs, "seconds": self._seconds}
                self._process = self._context.Process(target=compile_constraints, name=GRAMMAR_PROCESS, kwargs=kwargs)
                self._process.start()
        return self._control


def compile_constraints(*, vllm_config: VllmConfig, control: socket.socket, seconds: float) -> None:
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
    try:
        stream = connection.makefile("rb")
        request = json.loads(stream.read(int.from_bytes(stream.read(_LENGTH_BYTES), "big")))
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
