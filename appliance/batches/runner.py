"""The task of a server that runs batches of all owners; of several processes, one runs each batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import structlog

from appliance.batches.batch_run import BatchRun, ModelSlots
from appliance.batches.executor import LineExecutor, Render, Respond
from appliance.batches.objects import FINAL, Batch
from appliance.batches.store import BatchStore
from appliance.config.limits import share
from appliance.core.errors import ApplianceError
from appliance.core.file_lock import FileLock
from appliance.core.stored_objects import DamagedObjectError, ObjectKey
from appliance.models.manager import ModelManager
from appliance.telemetry.recorder import RequestRecorder

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How soon a batch starts that another process has accepted, or that another process ran until it ended.
_POLL_SECONDS = 0.5

_SWEEP_SECONDS = 600.0

# After a failure that has nothing to do with one batch.
_FAILURE_SECONDS = 10.0

# Before a batch whose run crashed is run again.
_CRASH_SECONDS = 60.0


class BatchRunner:
    """Runs all batches of the store that have not ended, until the server drains."""

    def __init__(
        self, store: BatchStore, manager: ModelManager, recorder: RequestRecorder, render: Render, respond: Respond
    ) -> None:
        self.store = store
        self._manager = manager
        self._executor = LineExecutor(manager, recorder, render, respond, store.config.start)
        # The share of this worker in the limit.
        self._slots = ModelSlots(share(store.config.concurrent, manager.workers) or 1)
        self._runs: dict[ObjectKey, asyncio.Task[None]] = {}
        self._retry_at: dict[ObjectKey, float] = {}
        self._swept = float("-inf")
        self._added = asyncio.Event()

    def wake(self) -> None:
        """Look at once for batches that were added."""
        self._added.set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run batches during the block; requests that are running at its end run again at the next start."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        stopping = asyncio.create_task(self._manager.stopping.wait())
        try:
            while not self._manager.is_stopping:
                self._added.clear()
                try:
                    await self._look()
                except ApplianceError:
                    # The store has logged it; the disk may work again later.
                    pass
                except Exception as error:
                    log.exception("batches.failed", reason=type(error).__name__)
                    await asyncio.wait([stopping], timeout=_FAILURE_SECONDS)
                added = asyncio.create_task(self._added.wait())
                try:
                    await asyncio.wait([stopping, added], timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    added.cancel()
        finally:
            tasks = [stopping, *self._runs.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        """Start the batches that no process runs, and delete what has expired."""
        for key in await asyncio.to_thread(self.store.unfinished):
            if key in self._runs or self._retry_at.get(key, 0) > time.monotonic():
                continue
            if (claim := await asyncio.to_thread(self.store.claim, key)) is not None:
                self._runs[key] = asyncio.create_task(self._run_batch(key, claim))
        if time.monotonic() - self._swept > _SWEEP_SECONDS:
            self._swept = time.monotonic()
            await asyncio.to_thread(self.store.sweep)

    async def _run_batch(self, key: ObjectKey, claim: FileLock) -> None:
        store = self.store
        run = partial(BatchRun, store, key.owner, manager=self._manager, executor=self._executor, slots=self._slots)
        try:
            with claim:
                try:
                    batch = await asyncio.to_thread(store.batch, key.owner, key.id)
                    if batch is not None and batch.status not in FINAL:
                        await run(batch).run()
                except DamagedObjectError:
                    await run(Batch.lost(key.id)).fail()
                await asyncio.to_thread(store.finish, key, claim)
        except Exception as error:
            self._retry_at[key] = time.monotonic() + _CRASH_SECONDS
            reason = str(error) if isinstance(error, ApplianceError) else type(error).__name__
            log.exception("batch.crashed", batch=key.id, reason=reason)
        finally:
            del self._runs[key]
