"""Batches of texts of several requests: requests take turns, and texts of similar length are computed together."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.core.errors import EngineDeadError
from appliance.engines.onnx.metrics import BatchMetrics
from appliance.engines.vllm.metrics import ENGINES

if TYPE_CHECKING:
    from appliance.engines.onnx.encoder import Encoder, Floats, Text, Tokens

Result = TypeVar("Result")

# Tokens of a batch with its padding, as in vLLM on a CPU: larger batches are not faster, and others wait for them.
_BATCH_TOKENS = 2048

# Tokenized at once, before other requests get their turn.
_TOKENIZED_TEXTS = 64

# A batch takes less than a second.
_STALL_SECONDS = 300.0


class _Job:
    """The texts of one request that are not computed yet, the longest first, and the rows of those that are."""

    def __init__(self, tokens: Sequence[Tokens]) -> None:
        self.tokens = tokens
        self.waiting = deque(sorted(range(len(tokens)), key=lambda index: -len(tokens[index][0])))
        self.rows: list[Floats | None] = [None] * len(tokens)
        self.future: Future[list[Floats]] = Future()
        self.arrived = time.monotonic()

    @property
    def longest(self) -> int:
        return len(self.tokens[self.waiting[0]][0])


class Batcher:
    """One thread that tokenizes and one that computes, for all requests of a model."""

    def __init__(self, encoder: Encoder, model: str) -> None:
        self._encoder = encoder
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._last: _Job | None = None
        self._is_closed = False
        self._batch_began: float | None = None
        self._running = 0
        self._metrics = BatchMetrics(model, lambda: self._running, self._waiting)
        ENGINES.add(self, self._metrics.registry)
        self._thread = threading.Thread(target=self._run, daemon=True, name="onnx-batches")
        self._thread.start()

    async def tokenize(self, texts: Sequence[Text], truncate: int | None, side: str) -> list[Tokens]:
        """Return the tokens of texts; raises as `Encoder.tokenize`."""
        tokens: list[Tokens] = []
        for begin in range(0, len(texts), _TOKENIZED_TEXTS):
            part = texts[begin : begin + _TOKENIZED_TEXTS]
            tokens += await self.with_tokenizer(self._encoder.tokenize, part, truncate, side)
        return tokens

    async def with_tokenizer(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call what uses the tokenizer, in the thread that may; raises what it does."""
        if self._is_closed:
            raise EngineDeadError("the model was stopped")
        return await asyncio.wrap_future(self._tokenizing.submit(function, *args, **kwargs))

    async def compute(self, tokens: Sequence[Tokens]) -> list[Floats]:
        """Return the row of each text in order; cancelling this drops those that wait."""
        job = _Job(tokens)
        with self._changed:
            if self._is_closed:
                raise EngineDeadError("the model was stopped")
            self._jobs.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.future)

    def check(self) -> None:
        """Return at once; raise EngineDeadError if the thread died, or a batch takes far too long."""
        began = self._batch_began
        if not self._thread.is_alive():
            raise EngineDeadError("the thread that computes has ended; see the log")
        if began is not None and time.monotonic() - began > _STALL_SECONDS:
            raise EngineDeadError(f"a batch has taken more than {_STALL_SECONDS:.0f} seconds")

    def close(self) -> None:
        """End the requests that wait, and both threads after what they are doing."""
        with self._changed:
            self._is_closed = True
            jobs, self._jobs = self._jobs, deque()
            self._changed.notify()
        for job in jobs:
            _fail(job, EngineDeadError("the model was stopped"))
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        ENGINES.drop(self)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if self._is_closed:
                    return
                batch = self._next_batch()
            if batch:
                self._compute(batch)

    def _compute(self, batch: Sequence[tuple[_Job, int]]) -> None:
        began = self._batch_began = time.monotonic()
        self._running = len(batch)
        tokens = [job.tokens[index] for job, index in batch]
        try:
            rows = self._encoder.compute(tokens)
        except Exception as error:
            # The tokens were checked, so this is a fault of the model.
            for job, _ in batch:
                job.waiting.clear()
                _fail(job, error)
            return
        finally:
            self._batch_began, self._running = None, 0
        waits = [began - job.arrived for job, _ in batch]
        self._metrics.add(sum(len(ids) for ids, _ in tokens), waits, time.monotonic() - began)
        for (job, index), row in zip(batch, rows, strict=True):
            job.rows[index] = row
        for job in {job for job, _ in batch}:
            if not job.waiting and (complete := [row for row in job.rows if row is not None]):
                with contextlib.suppress(InvalidStateError):
                    job.future.set_result(complete)

    def _waiting(self) -> int:
        with self._changed:
            return sum(len(job.waiting) for job in self._jobs if not job.future.done())

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """Take the longest texts of the next request, and those of others that need little padding beside them."""
        # The one of the last batch comes after those that have come since.
        waiting = (job for job in self._jobs if job.waiting and not job.future.done())
        jobs = sorted(waiting, key=lambda job: job is self._last)
        batch: list[tuple[_Job, int]] = []
        width = jobs[0].longest if jobs else 0
        for job in jobs:
            while job.waiting and (not batch or (len(batch) + 1) * width <= _BATCH_TOKENS):
                if not width / 2 <= job.longest <= width:
                    break
                batch.append((job, job.waiting.popleft()))
        self._jobs, self._last = deque(jobs), jobs[0] if jobs else None
        return batch


def _fail(job: _Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        job.future.set_exception(error)
