"""A file of requests that is answered by models without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from appliance.batches.executor import LineExecutor, Render, Respond
from appliance.batches.lines import BatchLine, LineLimits, LineResult, read_lines
from appliance.batches.objects import BatchError, new_id
from appliance.batches.validation import InputCheck, model_fault
from appliance.config import Config
from appliance.core.errors import ApplianceError, LoadError
from appliance.models.factory import ModelFactory
from appliance.models.manager import ModelManager
from appliance.models.state import State
from appliance.telemetry.recorder import RequestRecorder

_POLL_SECONDS = 0.2

# Of a model that does not say how many requests it computes at once.
_CONCURRENT = 16


class Results(Protocol):
    """Where results go; `done` has the ids of the lines that have one, and `failed` of them are failures."""

    done: set[str]
    failed: int

    def append(self, result: LineResult) -> None:
        """Add a result."""


@dataclass(slots=True)
class Progress:
    """How far it is; `total` counts the lines of the file, `done` also those of an earlier run."""

    total: int = 0
    done: int = 0
    failed: int = 0


class InputError(ApplianceError):
    """Lines of the input are no requests."""

    exit_code = 2

    def __init__(self, name: str, errors: list[BatchError]) -> None:
        super().__init__(
            "\n".join(f"{name}:{error.line}: {error.message}" if error.line else error.message for error in errors)
        )


class OutputError(ApplianceError):
    """Results cannot be written."""

    exit_code = 2


class OfflineBatch:
    """Runs the requests of a file by the models of a config, which it starts and stops."""

    def __init__(
        self,
        config: Config,
        factory: ModelFactory,
        render: Render,
        respond: Callable[[ModelManager, RequestRecorder], Respond],
        concurrent: int | None,
    ) -> None:
        # There are no clients, so that nothing is to be authorized.
        server = config.server.model_copy(update={"api_keys": None, "allowed_hosts": None})
        self._config = config.model_copy(update={"server": server})
        self._factory, self._render, self._respond, self._concurrent = factory, render, respond, concurrent
        self._limits = LineLimits(server.max_body_bytes, server.limits.json_depth, server.limits.json_members)
        self.progress = Progress()

    async def run(
        self, path: Path, name: str, results: Results, on_progress: Callable[[Progress, ModelManager], None]
    ) -> None:
        """Answer each line that has no result yet; `on_progress` is called several times a second.

        Raises:
            InputError: a line is no request; none is run.
            OutputError: a result cannot be written.
            LoadError: a model cannot be loaded, or died.
        """
        manager, recorder = ModelManager(self._config, factory=self._factory), RequestRecorder(self._config)
        self.progress.total, errors = await asyncio.to_thread(self._check, manager, path)
        if errors:
            raise InputError(name, errors)
        manager.start()

        def show() -> None:
            on_progress(self.progress, manager)
            _require_alive(manager)

        try:
            await run_shown(self._work(manager, recorder, path, results), show)
        finally:
            await manager.stop()
            await recorder.stop()

    def _check(self, manager: ModelManager, path: Path) -> tuple[int, list[BatchError]]:
        with path.open("rb") as file:
            return InputCheck(partial(model_fault, manager)).check(read_lines(file, self._limits))

    async def _work(self, manager: ModelManager, recorder: RequestRecorder, path: Path, results: Results) -> None:
        # Polled: once in the life of a process.
        while not manager.is_ready:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        executor = LineExecutor(manager, recorder, self._render, self._respond(manager, recorder), None)
        capacity = sum(status.queue.concurrent or _CONCURRENT for status in manager.statuses)
        batch_id = new_id("batch_")

        async def answer(line: BatchLine) -> LineResult:
            return await executor.answer(line, f"{batch_id}-{line.number}", batch_id, None)

        await answer_all(path, self._limits, results, self.progress, self._concurrent or capacity, answer)


async def run_shown(work: Coroutine[Any, Any, None], show: Callable[[], None]) -> None:  # Any: as `Coroutine` has them
    """Do the work of `answer_all`, and call `show` several times a second; its errors end the work."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_POLL_SECONDS)
            show()
        task.result()
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def answer_all(
    path: Path,
    limits: LineLimits,
    results: Results,
    progress: Progress,
    concurrent: int,
    answer: Callable[[BatchLine], Awaitable[LineResult]],
) -> None:
    """Answer each line of a file that has no result yet, so many at once.

    Raises:
        ExceptionGroup: of an OutputError, or of what `answer` raises.
    """
    slots = asyncio.Semaphore(concurrent)
    progress.done, progress.failed = len(results.done), results.failed

    async def add_result(line: BatchLine) -> None:
        try:
            result = await answer(line)
            try:
                await asyncio.to_thread(results.append, result)
            except OSError as error:
                raise OutputError(f"The results cannot be written: {error.strerror}") from error
            progress.done, progress.failed = len(results.done), results.failed
        finally:
            slots.release()

    with await asyncio.to_thread(path.open, "rb") as file:
        async with asyncio.TaskGroup() as group:
            for line in read_lines(file, limits):
                if isinstance(line, BatchLine) and line.custom_id not in results.done:
                    await slots.acquire()
                    group.create_task(add_result(line))


def _require_alive(manager: ModelManager) -> None:
    for status in manager.statuses:
        if status.state is State.FAILED:
            error = LoadError(f"The model {status.name!r} failed: {status.reason}")
            error.exit_code = manager.exit_code or error.exit_code
            raise error
