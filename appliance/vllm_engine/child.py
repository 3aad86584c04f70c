"""
What runs first in every process vLLM starts: it logs like its parent, and never outlives it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

from appliance import logs
from appliance.processes import die_with_parent


def join() -> None:
    """
    Become a good child; does nothing in the process that people started.

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
    logs.join()


class ForkServer:
    """
    A multiprocessing context whose processes are forked from a server that has imported vLLM.

    The server has one thread and no CUDA, so forking it is safe where forking this process is not,
    and it imports on another core while this process imports too. It ends with the thread that makes
    it, and everything it forked ends with it: make it in the main thread.
    """

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["appliance.vllm_engine.preload"])
        multiprocessing.forkserver.ensure_running()
        self._causes, self._confess = self._context.Pipe(duplex=False)

    def cause(self) -> str | None:
        """
        Why the last process ended, in its own words; None when it had none.
        """
        cause: str | None = self._causes.recv() if self._causes.poll() else None
        return cause

    # Any: vLLM's own arguments.
    def Process(self, *, target: Callable[..., None], name: str, kwargs: Mapping[str, Any]) -> BaseProcess:  # noqa: N802
        """
        A process that is not started yet, with this process's environment as it is now.

        Named as multiprocessing names it, which is what vLLM calls.
        """
        arguments = (dict(os.environ), self._confess, target)
        return self._context.Process(target=_run, name=name, args=arguments, kwargs=kwargs)

    def __getattr__(self, name: str) -> Any:  # Any: the rest of a context, as vLLM finds it
        return getattr(self._context, name)


def _run(environ: Mapping[str, str], confess: Connection, target: Callable[..., None], **kwargs: Any) -> None:
    # The fork server's environment is from before vLLM wrote its settings into the parent's.
    os.environ.clear()
    os.environ.update(environ)
    join()
    try:
        target(**kwargs)
    except Exception as error:
        confess.send(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        # vLLM has told the log how it came to that, and multiprocessing would tell it again, on the standard error.
        raise SystemExit(1) from error
