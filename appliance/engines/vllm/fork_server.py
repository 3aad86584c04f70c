"""What runs first in every process vLLM starts: it logs like its parent, and never outlives it."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from appliance.core import logging_setup
from appliance.core.system import die_with_parent
from appliance.engines.vllm.startup_timings import StartupTimings, timed

Answer = TypeVar("Answer")


def join() -> None:
    """Become a good child; does nothing in the process that people started.

    vLLM calls it in each of its processes, through the entry point group ``vllm.general_plugins``.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # Out of the terminal's process group: Ctrl-C goes to the parent alone, which drains first.
    os.setpgid(0, 0)
    die_with_parent()
    # It may have died before the kernel knew whom to tell.
    if not parent.is_alive():
        os._exit(1)
    logging_setup.join()


class ForkServer:
    """A multiprocessing context whose processes are forked from a server that has imported vLLM.

    The server has one thread and no CUDA, so forking it is safe where forking this process is not,
    and it imports on another core while this process imports too. It ends with the thread that makes
    it, and everything it forked ends with it: make it in the main thread. There is one for all engines.
    """

    def __init__(self, parts: StartupTimings, surroundings: Mapping[str, str] = {}, threads: int | None = None) -> None:
        """`parts` are told of what the start of an engine core is spent on there.

        `surroundings` go over this process's environment, in the server from its birth if it is not there yet, and in
        what is forked; `threads` is how many compute in what is forked, None leaves that to Torch.
        """
        self._parts = parts
        self._surroundings = dict(surroundings)
        self._threads = threads
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["appliance.engines.vllm.fork_server_imports"])
        with _environment(self._surroundings):
            multiprocessing.forkserver.ensure_running()
        self._told, self._tell = self._context.Pipe(duplex=False)
        self._listening = threading.Lock()
        self._cause: str | None = None

    def cause(self) -> str | None:
        """Why the last process ended, in its own words; None when it had none."""
        self.listen()
        return self._cause

    def listen(self) -> None:
        """Take in what was told until now."""
        with self._listening:
            while self._told.poll():
                word = self._told.recv()
                if isinstance(word, str):
                    self._cause = word
                else:
                    self._parts.hear(*word)

    # Any: vLLM's own arguments.
    def Process(self, *, target: Callable[..., None], name: str, kwargs: Mapping[str, Any]) -> BaseProcess:  # noqa: N802
        """A process that is not started yet, with this process's environment as it is now.

        Named as multiprocessing names it, which is what vLLM calls.
        """
        arguments = ({**os.environ, **self._surroundings}, self._threads, self._tell, target)
        return self._context.Process(target=_run, name=name, args=arguments, kwargs=kwargs)

    def compute(self, work: Callable[[], Answer]) -> Answer:
        """What `work` returns, or raises as a RuntimeError, in a process of its own that has imported vLLM."""
        import cloudpickle

        answers, answer = self._context.Pipe(duplex=False)
        arguments = (dict(os.environ), answer, cloudpickle.dumps(work))
        process = self._context.Process(target=_compute, args=arguments)
        process.start()
        answer.close()
        try:
            made, fault = answers.recv()
        finally:
            process.join()
            answers.close()
        if fault is not None:
            raise RuntimeError(fault)
        return cast("Answer", made)

    def __getattr__(self, name: str) -> Any:  # Any: the rest of a context, as vLLM finds it
        return getattr(self._context, name)


class Spawning:
    """vLLM's own context, for a process in which vLLM calls nothing of ours: it becomes a good child all the same."""

    def __init__(self, context: Any) -> None:  # Any: one of multiprocessing's
        self._context = context

    # Any: vLLM's own arguments.
    def Process(self, *, target: Callable[..., None], **others: Any) -> BaseProcess:  # noqa: N802
        """A process that is not started yet; named as multiprocessing names it."""
        return cast("BaseProcess", self._context.Process(target=partial(_joined, target), **others))

    def __getattr__(self, name: str) -> Any:  # Any: the rest of a context, as vLLM finds it
        return getattr(self._context, name)


def _joined(target: Callable[..., None], **kwargs: Any) -> None:  # Any: vLLM's own arguments
    join()
    target(**kwargs)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(
    environ: Mapping[str, str],
    threads: int | None,
    tell: Connection,
    target: Callable[..., None],
    **kwargs: Any,  # Any: vLLM's own arguments
) -> None:
    _begin(environ)
    if threads is not None:
        _compute_with(threads)
    if "executor_class" in kwargs:
        kwargs["executor_class"] = timed(kwargs["executor_class"], lambda *part: tell.send(part))
    try:
        target(**kwargs)
    except Exception as error:
        tell.send(_in_words(error))
        # vLLM has told the log how it came to that, and multiprocessing would tell it again, on the standard error.
        raise SystemExit(1) from error


def _compute(environ: Mapping[str, str], answer: Connection, work: bytes) -> None:
    _begin(environ)
    try:
        # Written by `compute`, a moment ago.
        answer.send((pickle.loads(work)(), None))  # noqa: S301
    except Exception as error:
        answer.send((None, _in_words(error)))


def _begin(environ: Mapping[str, str]) -> None:
    # The fork server's environment is from before vLLM wrote its settings into the parent's.
    os.environ.clear()
    os.environ.update(environ)
    join()


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _compute_with(threads: int) -> None:
    """Not through the environment: OpenMP has read that when the fork server began, for the first of all engines."""
    import torch

    torch.set_num_threads(threads)
