"""
One call under way: counted from its first moment to its last byte, whoever ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import cast

from appliance.contract import Call, Reply
from appliance.errors import UnavailableError, UnsupportedOperationError
from appliance.lifecycle.entry import Entry
from appliance.lifecycle.state import RULES, State
from appliance.record import Record, current


async def answer(entry: Entry, call: Call, *, is_inner: bool = False) -> Reply:
    """
    Have the entry's model answer; a stream is returned once its first bytes are there,
    so that a failure before them still has a status of its own.

    An inner call is one that a call under way needs: it is answered until the drain is over.

    Raises:
        CallError: the model cannot do this, cannot do it now, or the call itself is at fault.
        EngineDeadError: the model died over it.
    """
    # An inner call belongs to a request that has its own entry in it.
    record = None if is_inner else current()
    if record is not None:
        record.model, record.operation = entry.section.name, call.operation
    _require(entry, call, is_inner)
    work = _work(entry, call, record)
    reply = cast("Reply", await anext(work))
    if isinstance(reply.body, bytes):
        await work.aclose()
        return reply
    return replace(reply, body=cast("AsyncGenerator[bytes]", work))


async def quiet(entries: Sequence[Entry], seconds: float) -> None:
    """
    Wait up to `seconds` until no call is under way.
    """
    deadline = time.monotonic() + seconds
    # Polled: the count has many writers' ends and one reader, seldom in a process's life.
    while any(entry.running for entry in entries) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def _require(entry: Entry, call: Call, is_inner: bool) -> None:
    name, rule = entry.section.name, RULES[entry.state]
    if call.operation not in entry.model.operations:
        can = ", ".join(sorted(entry.model.operations))
        raise UnsupportedOperationError(
            f"The model {name!r} does not support {call.operation}; it supports: {can}",
            param="model",
            code="unsupported_operation",
        )
    if not rule.is_ready and not (entry.state is State.DRAINING and (is_inner or entry.answers_late)):
        raise UnavailableError(f"The model {name!r} is {entry.state}: {entry.reason}", retry_after=rule.retry_after)


async def _work(entry: Entry, call: Call, record: Record | None) -> AsyncGenerator[Reply | bytes]:
    """
    Yields the reply, then the bytes of its stream if it is one.

    A generator that has begun always ends, be it by the garbage collector: the count cannot leak.
    """
    entry.running += 1
    if record is not None:
        record.admitted = time.monotonic()
    began, is_good = time.monotonic_ns(), False
    stream: AsyncGenerator[bytes] | None = None
    try:
        reply = await entry.model.answer(call)
        if isinstance(reply.body, bytes):
            is_good = reply.status < 400
            yield reply
            return
        stream = reply.body
        first = await anext(stream, b"")
        if record is not None:
            record.first = time.monotonic()
        yield reply
        yield first
        async for chunk in stream:
            yield chunk
        is_good = reply.status < 400
    finally:
        entry.running -= 1
        entry.tally.count(began, is_good=is_good)
        if stream is not None:
            await stream.aclose()
