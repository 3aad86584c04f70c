"""The processes of one engine: started by one thread, watched and killed together."""

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
from appliance.engines.vllm.fork_server import GRAMMAR_PROCESS

Result = TypeVar("Result")


class EngineProcesses:
    """The children that vLLM starts in this process for one engine; engines start one after the other."""

    def __init__(self) -> None:
        # One thread for the engine's life: the kernel ends a spawned child with the thread that started it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._earlier_children = frozenset(multiprocessing.active_children())
        self._processes: list[BaseProcess] = []
        self._is_killed = False

    def start(self, launch: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run in a thread what starts the processes; it fails soon after they are killed."""
        return asyncio.get_running_loop().run_in_executor(self._thread, launch)

    def raise_if_killed(self) -> None:
        """Raise LoadError if the processes were killed, so that no new one is started."""
        if self._is_killed:
            raise LoadError("the load was stopped")

    def record(self) -> None:
        """Take the children of now as the engine's processes: all of them are started."""
        self._processes = self._children()

    def describe_deaths(self) -> str:
        """Return which processes have ended and how; empty while all live."""
        dead = [process for process in self._processes or self._children() if not process.is_alive()]
        return ", ".join(f"process {process.pid} ended with exit code {process.exitcode}" for process in dead)

    def kill(self) -> None:
        """Kill all processes and their children, also while they are starting; does nothing the second time."""
        if self._is_killed:
            return
        self._is_killed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        for process in self._processes or self._children():
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                for each in (*root.children(recursive=True), root):
                    each.kill()

    def _children(self) -> list[BaseProcess]:
        children = (child for child in multiprocessing.active_children() if child.name != GRAMMAR_PROCESS)
        return [child for child in children if child not in self._earlier_children]
