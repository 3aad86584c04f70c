"""The processes of one engine: started by one thread, watched together, killed together."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import TypeVar

import psutil

from appliance.core.errors import LoadError
from appliance.engines.vllm.grammar_check import PROCESS_NAME

T = TypeVar("T")


class EngineProcesses:
    """What vLLM starts in this process for one engine; engines start one after the other."""

    def __init__(self) -> None:
        # One thread for the engine's whole life: the kernel tells a spawned child of the death
        # of the thread that made it, not of the process.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._others = frozenset(multiprocessing.active_children())
        self._processes: list[BaseProcess] = []
        self._is_killed = False

    def start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Do what starts the processes; it blocks a thread of its own, and fails soon once they are killed."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def proceed(self) -> None:
        """Return when the processes are still wanted.

        Raises:
            LoadError: they are not.
        """
        if self._is_killed:
            raise LoadError("the load was stopped")

    def settle(self) -> None:
        """All of them have been started."""
        self._processes = self._new()

    def deaths(self) -> str:
        """Which of them have ended, in words; empty while all live."""
        dead = [process for process in self._processes or self._new() if not process.is_alive()]
        return ", ".join(f"process {process.pid} ended with exit code {process.exitcode}" for process in dead)

    def kill(self) -> None:
        """End every one at once, also one that is still starting; once is enough."""
        if self._is_killed:
            return
        self._is_killed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        for process in self._processes or self._new():
            with contextlib.suppress(psutil.NoSuchProcess):
                core = psutil.Process(process.pid)
                for each in (*core.children(recursive=True), core):
                    each.kill()

    def _new(self) -> list[BaseProcess]:
        children = (each for each in multiprocessing.active_children() if each.name != PROCESS_NAME)
        return [process for process in children if process not in self._others]
