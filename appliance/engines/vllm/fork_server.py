"""The processes of an engine: forked from a server, set up as our children, timed, watched and killed together."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial, wraps
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import psutil

from appliance.core import logging_setup
from appliance.core.child_process import end_with_parent
from appliance.core.errors import LoadError
from appliance.core.system import kill

Result = TypeVar("Result")

GRAMMAR_PROCESS = "grammar-check"
"""The name of processes that compile grammars; an engine outlives them."""

# Phases of a start, by the methods of vLLM's executors.
_PHASES = {
    "_init_executor": "weights",
    "determine_available_memory": "profile",
    "initialize_from_config": "kv_cache",
    "compile_or_warm_up_model": "warm_up",
}


def join() -> None:
    """Set up a process as our child; vLLM calls it in each of its own, by the entry points ``vllm.general_plugins``."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # A process group of its own: Ctrl-C on a terminal goes to the parent alone, which drains first.
    os.setpgid(0, 0)
    end_with_parent()
    # It may have died before the call above; its id would be the fork server's.
    if not parent.is_alive():
        os._exit(1)
    logging_setup.join()


class StartupTimings:
    """Seconds of a start by phase, in the order in which the phases ended; written and read in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: Mapping[str, float] = {}
        self._clock = clock
        self._lock = threading.Lock()

    def add(self, phase: str, seconds: float) -> None:
        with self._lock:
            # Replaced, not changed: another thread may be reading it.
            self.seconds = {**self.seconds, phase: self.seconds.get(phase, 0.0) + seconds}

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase, without the time of phases that are added within it."""
        start, before = self._clock(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - before
            self.add(phase, max(0.0, self._clock() - start - within))


class ForkServer:
    """A multiprocessing context whose processes are forked from a server that has imported vLLM.

    The server has one thread and no CUDA, so forking it is safe where forking this process is not, and it imports
    while this process imports too. It ends with the thread that creates it, and everything it forked ends with it: so
    create it in the main thread. There is one for all engines.
    """

    def __init__(
        self, timings: StartupTimings, environment: Mapping[str, str] = {}, threads: int | None = None
    ) -> None:
        """`timings` receives those of the engine core; `environment` goes over our own, in the server and its forks.

        `threads` is the number of Torch's threads in a fork; None leaves it to Torch.
        """
        self._timings = timings
        self._environment = dict(environment)
        self._threads = threads
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["appliance.engines.vllm.fork_server_imports"])
        with restored_variables(*self._environment):
            os.environ.update(self._environment)
            multiprocessing.forkserver.ensure_running()
        self._receiver, self._sender = self._context.Pipe(duplex=False)
        self._lock = threading.Lock()
        self._error: str | None = None

    def last_error(self) -> str | None:
        """Return why the last process failed, None if it did not."""
        self.receive()
        return self._error

    def receive(self) -> None:
        """Take over the timings and errors that the forks have sent until now."""
        with self._lock:
            while self._receiver.poll():
                message = self._receiver.recv()
                if isinstance(message, str):
                    self._error = message
                else:
                    self._timings.add(*message)

    # Any: vLLM's own arguments. The name is multiprocessing's, which vLLM calls.
    def Process(self, *, target: Callable[..., None], name: str, kwargs: Mapping[str, Any]) -> BaseProcess:  # noqa: N802
        """Return a process that is not started yet, with this process's environment as it is now."""
        arguments = ({**os.environ, **self._environment}, self._threads, self._sender, target)
        return self._context.Process(target=_run, name=name, args=arguments, kwargs=kwargs)

    def compute(self, function: Callable[[], Result]) -> Result:
        """Return the result of the function, run in a fork; its exception is raised as a RuntimeError."""
        import cloudpickle

        with ProcessPoolExecutor(1, self._context) as pool:
            try:
                result: Result = pool.submit(_compute, dict(os.environ), cloudpickle.dumps(function)).result()
            except Exception as error:
                raise RuntimeError(_describe(error)) from error
        return result

    def __getattr__(self, name: str) -> Any:  # Any: the rest of a context, as vLLM finds it
        return getattr(self._context, name)


class SpawnContext:
    """A context for processes in which vLLM loads no plugins: it calls `join` there."""

    def __init__(self, context: Any) -> None:  # Any: one of multiprocessing's
        self._context = context

    # Any: vLLM's own arguments. The name is multiprocessing's, which vLLM calls.
    def Process(self, *, target: Callable[..., None], **others: Any) -> BaseProcess:  # noqa: N802
        """Return a process that is not started yet."""
        return cast("BaseProcess", self._context.Process(target=partial(_set_up_and_run, target), **others))

    def __getattr__(self, name: str) -> Any:  # Any: the rest of a context, as vLLM finds it
        return getattr(self._context, name)


def _set_up_and_run(target: Callable[..., None], **kwargs: Any) -> None:  # Any: vLLM's own arguments
    join()
    target(**kwargs)


@contextlib.contextmanager
def restored_variables(*names: str) -> Iterator[None]:
    """Restore these environment variables after the block."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def _run(
    environment: Mapping[str, str],
    threads: int | None,
    sender: Connection,
    target: Callable[..., None],
    **kwargs: Any,  # Any: vLLM's own arguments
) -> None:
    _set_up_fork(environment)
    if threads is not None:
        import torch

        # Not by a variable: OpenMP read those when the fork server started, for the first of all engines.
        torch.set_num_threads(threads)
    if "executor_class" in kwargs:
        kwargs["executor_class"] = _timed_executor(kwargs["executor_class"], sender)
    try:
        target(**kwargs)
    except Exception as error:
        sender.send(_describe(error))
        # vLLM has logged the traceback; multiprocessing would write it to standard error again.
        raise SystemExit(1) from error


def _timed_executor(executor: type, sender: Connection) -> type:
    """Return a subclass of one of vLLM's executors that sends each phase of its start, and the seconds that it took."""

    def timed(name: str, phase: str) -> Callable[..., Any]:
        original = getattr(executor, name)

        @wraps(original)
        def method(*args: Any) -> Any:  # Any: vLLM's own arguments
            start = time.monotonic()
            # It returns when the model's workers are done.
            result = original(*args)
            sender.send((phase, time.monotonic() - start))
            return result

        return method

    return type("TimedExecutor", (executor,), {name: timed(name, phase) for name, phase in _PHASES.items()})


def _compute(environment: Mapping[str, str], function: bytes) -> Any:  # Any: the function's result
    _set_up_fork(environment)
    # Pickled by `ForkServer.compute` a moment ago.
    return pickle.loads(function)()  # noqa: S301


def _set_up_fork(environment: Mapping[str, str]) -> None:
    # The fork server's environment is older than the settings that vLLM wrote into the parent's.
    os.environ.clear()
    os.environ.update(environment)
    join()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


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
                kill([*root.children(recursive=True), root])

    def _children(self) -> list[BaseProcess]:
        children = (child for child in multiprocessing.active_children() if child.name != GRAMMAR_PROCESS)
        return [child for child in children if child not in self._earlier_children]
