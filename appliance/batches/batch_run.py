"""One batch from its validation to the files with its results."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from functools import partial
from itertools import islice
from typing import Literal

import structlog
from prometheus_client import Counter

from appliance.auth import Principal, authenticated
from appliance.batches.executor import LineExecutor
from appliance.batches.lines import BatchLine, Journal, LineError, LineLimits, LineResult, read_lines
from appliance.batches.objects import Batch, BatchError, BatchErrors, FileObject, RequestCounts, now
from appliance.batches.store import ERRORS, INPUT, OUTPUT, BatchStore
from appliance.batches.validation import InputCheck, model_fault
from appliance.core.stored_objects import disk_errors
from appliance.models.manager import ModelManager

log: structlog.stdlib.BoundLogger = structlog.get_logger()

BATCHES = Counter("appliance_batches", "Batches that ended, by their last status.", ("status",))
LINES = Counter("appliance_batch_requests", "Requests of batches that ended.", ("result",))

# How often a batch looks whether it was cancelled, and writes how far it is.
_POLL_SECONDS = 0.5

# After a failure of the disk.
_DISK_SECONDS = 10.0

# So many lines are read at a time.
_CHUNK_LINES = 64

_Ending = Literal["completed", "cancelled", "expired", "failed"]


class BatchFailedError(Exception):
    """The batch cannot be run; the message is for its owner."""

    def __init__(self, *errors: BatchError) -> None:
        super().__init__(errors[0].message)
        self.errors = errors


class ModelSlots:
    """So many requests of batches for each model at once; batches take turns in the order of their requests."""

    def __init__(self, concurrent: int) -> None:
        self._semaphores: defaultdict[str | None, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(concurrent)
        )

    def of(self, model: str | None) -> asyncio.Semaphore:
        """Return the slots of a model, under the name that a line has for it."""
        return self._semaphores[model]


class BatchRun:
    """Runs one batch of an owner, from wherever it was interrupted."""

    def __init__(
        self,
        store: BatchStore,
        owner: str,
        batch: Batch,
        manager: ModelManager,
        executor: LineExecutor,
        slots: ModelSlots,
    ) -> None:
        self._store, self._owner, self._batch = store, owner, batch
        self._manager, self._executor, self._slots = manager, executor, slots
        self._log = log.bind(batch=batch.id, **({"key": owner} if owner else {}))

    async def run(self) -> None:
        """Run the batch to its end; when this is cancelled, a later run continues."""
        batch = self._batch
        try:
            if batch.status == "validating":
                await self._validate()
            ending = await self._ending() or await self._answer_lines()
        except BatchFailedError as error:
            batch.errors, ending = BatchErrors(error.errors), "failed"
        await self._finish(ending)

    async def fail(self) -> None:
        """End a batch that is damaged; the results that it has are kept."""
        message = "A file of the batch was changed, and cannot be read; create the batch again"
        self._batch.errors = BatchErrors([BatchError("damaged", message)])
        await self._finish("failed")

    async def _ending(self) -> _Ending | None:
        """Return how the batch ends before all its lines have results; None if it does not."""
        if await asyncio.to_thread(self._store.cancelled_at, self._owner, self._batch.id):
            return "cancelled"
        return "expired" if self._batch.expires_at <= now() else None

    def _principal(self) -> Principal | None:
        """Return the key that the batch belongs to.

        Raises:
            BatchFailedError: there is none any more.
        """
        authorizer = self._manager.authorizer
        if not self._owner:
            if authorizer.is_closed:
                message = "The batch was created without an API key, and the server requires one now"
                raise BatchFailedError(BatchError("key_required", message))
            return None
        if (principal := authorizer.principal_named(self._owner)) is None:
            message = f"The API key {self._owner!r} of the batch was removed"
            raise BatchFailedError(BatchError("key_removed", message))
        return principal

    async def _validate(self) -> None:
        principal = self._principal()
        with authenticated(principal):
            total, errors = await asyncio.to_thread(self._check_input)
        if errors:
            raise BatchFailedError(*errors)
        self._batch.request_counts.total = total
        self._batch.enter("in_progress")
        await self._save()

    def _check_input(self) -> tuple[int, list[BatchError]]:
        fault = partial(model_fault, self._manager)
        return InputCheck(fault, self._batch.endpoint, self._store.config.max_requests).check(self._lines())

    def _lines(self) -> Iterator[BatchLine | LineError]:
        server = self._manager.config.server
        limits = LineLimits(server.max_body_bytes, server.limits.json_depth, server.limits.json_members)
        with disk_errors(), self._store.path(self._owner, self._batch.id, INPUT).open("rb") as file:
            yield from read_lines(file, limits)

    async def _answer_lines(self) -> _Ending:
        """Answer the lines that have no result yet, until all have one, or the batch is cancelled or expires."""
        await asyncio.to_thread(self._open_journals)
        self._log.info("batch.started", requests=self._batch.request_counts.total, endpoint=self._batch.endpoint)
        work = asyncio.create_task(self._answer_all())
        try:
            while True:
                ended, _ = await asyncio.wait([work], timeout=_POLL_SECONDS)
                # The results so far are kept, whatever happens to the rest.
                if ended:
                    work.result()
                    return "completed"
                await self._save_counts()
                if (ending := await self._ending()) is not None:
                    return ending
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await asyncio.to_thread(self._close_journals)

    def _open_journals(self) -> None:
        with disk_errors():
            self._outputs, self._errors = (
                Journal(self._store.path(self._owner, self._batch.id, name)) for name in (OUTPUT, ERRORS)
            )

    def _close_journals(self) -> None:
        for journal in (self._outputs, self._errors):
            journal.close()

    async def _answer_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as group, aclosing(self._unanswered()) as lines:
                async for line in lines:
                    slots = self._slots.of(line.model)
                    await slots.acquire()
                    task = group.create_task(self._answer(line))
                    task.add_done_callback(lambda _, slots=slots: slots.release())  # type: ignore[misc]  # bound here
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _unanswered(self) -> AsyncGenerator[BatchLine]:
        done = self._outputs.done | self._errors.done
        lines = self._lines()
        while chunk := await asyncio.to_thread(lambda: list(islice(lines, _CHUNK_LINES))):
            for line in chunk:
                # The file was validated, and does not change.
                if isinstance(line, BatchLine) and line.custom_id not in done:
                    yield line

    async def _answer(self, line: BatchLine) -> None:
        request_id = f"{self._batch.id}-{line.number}"
        result = await self._executor.answer(line, request_id, self._batch.id, self._principal())
        await self._write(result)
        LINES.labels("succeeded" if result.is_success else "failed").inc()

    async def _write(self, result: LineResult) -> None:
        journal = self._outputs if result.is_success else self._errors
        while True:
            try:
                await asyncio.to_thread(journal.append, result)
            except OSError as error:
                self._log.error("batch.paused", reason=f"its results cannot be written: {error.strerror}")
                await asyncio.sleep(_DISK_SECONDS)
            else:
                return

    async def _save_counts(self) -> None:
        counts = self._counts()
        if counts != self._batch.request_counts:
            self._batch.request_counts = counts
            await self._save()

    def _counts(self) -> RequestCounts:
        return RequestCounts(self._batch.request_counts.total, len(self._outputs.done), len(self._errors.done))

    async def _save(self) -> None:
        await asyncio.to_thread(self._store.save, self._owner, self._batch)

    async def _finish(self, ending: _Ending) -> None:
        """Make files of the results, and end."""
        batch = self._batch
        if ending == "completed":
            batch.enter("finalizing")
            await self._save()
        await asyncio.to_thread(self._conclude, is_expired=ending == "expired")
        batch.output_file_id = await asyncio.to_thread(self._publish, OUTPUT)
        batch.error_file_id = await asyncio.to_thread(self._publish, ERRORS)
        if ending == "cancelled":
            batch.cancelling_at = await asyncio.to_thread(self._store.cancelled_at, self._owner, batch.id)
        await self._end(ending)

    def _conclude(self, *, is_expired: bool) -> None:
        """Count the results; the rest of a batch that has expired becomes errors."""
        self._open_journals()
        message = "This request could not be executed before the completion window expired."
        with disk_errors():
            done = self._outputs.done | self._errors.done
            for line in self._lines() if is_expired else ():
                if isinstance(line, BatchLine) and line.custom_id not in done:
                    self._errors.append(LineResult(line.custom_id, error=("batch_expired", message)))
        self._close_journals()
        self._batch.request_counts = self._counts()

    def _publish(self, name: str) -> str | None:
        """Make a file of results, whose id follows from that of the batch, and return its id; None if it is empty."""
        store, owner, batch = self._store, self._owner, self._batch
        with disk_errors():
            results = store.path(owner, batch.id, name)
            if not (size := results.stat().st_size):
                return None
            own = hashlib.sha256(f"{batch.id} {name}".encode()).hexdigest()[:16]
            file_id = f"file-{batch.id.removeprefix('batch_')[:16]}{own}"
            expiry = batch.output_expires_after
            seconds = store.config.keep_hours * 3600 if expiry is None else expiry.seconds
            file = FileObject(
                id=file_id,
                bytes=size,
                created_at=now(),
                expires_at=now() + int(seconds),
                filename=f"{batch.id}_{name}",
                purpose="batch_output",
            )
            link = results.with_name(f".{name}")
            link.unlink(missing_ok=True)
            os.link(results, link)
            store.add_file(owner, file, link)
            return file_id

    async def _end(self, status: _Ending) -> None:
        batch = self._batch
        batch.enter(status)
        await self._save()
        counts = batch.request_counts
        reason = {} if batch.errors is None else {"reason": batch.errors.data[0].message}
        write = self._log.warning if status == "failed" else self._log.info
        write(
            "batch.ended",
            status=status,
            requests=counts.total,
            completed=counts.completed,
            failed=counts.failed,
            seconds=now() - batch.created_at,
            **reason,
        )
        BATCHES.labels(status).inc()
        await asyncio.to_thread(self._remove_files)

    def _remove_files(self) -> None:
        for name in (INPUT, OUTPUT, ERRORS):
            with suppress(OSError):
                self._store.path(self._owner, self._batch.id, name).unlink()
