"""The fork server of engine cores, and the set-up of every process that vLLM starts: it logs and ends as our child."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from appliance.core import logging_setup
from appliance.core.child_process import end_with_parent
from appliance.engines.vllm.startup_timings import StartupTimings, timed_executor

Result = TypeVar("Result")

GRAMMAR_PROCESS = "grammar-check"
"""The name of processes that compile grammars; an engine outlives them."""


def join() -> None:
    """Set up a process of vLLM's as our child; does nothing in the main process.

    vLLM calls it in each of its processes, through the entry point group ``vllm.general_plugins``.
    """
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


class ForkServer:
    """A multiprocessing context whose processes are forked from a server that has imported vLLM.

    The server has one thread and no CUDA, so forking it is safe where forking this process is not, and it imports
    while this process imports too. It ends with the thread that creates it, and everything it forked ends with it: so
    create it in the main thread. There is one for all engines.
    """

    def __init__(
        self, timings: StartupTimings, environment: Mapping[str, str] = {}, threads: int | None = None
    ) -> None:
        """`timings` receives the timings of the engine core's start.

        `environment` goes over this process's own: in the server when it starts, and in each fork. `threads` is the
        number of Torch's threads in a fork; None leaves it to Torch.
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
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
        kwargs["executor_class"] = timed_executor(kwargs["executor_class"], lambda *timing: sender.send(timing))
    try:
        target(**kwargs)
    except Exception as error:
        sender.send(_describe(error))
        # vLLM has logged the traceback; multiprocessing would write it to standard error again.
        raise SystemExit(1) from error


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
