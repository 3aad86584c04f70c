"""Work of several requests on one pool of threads, in turns.

vLLM tokenizes and decodes every text on one thread, first come first served, so that one request of thousands of texts
would keep all others waiting until the last of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Work:
    future: Future[Any]  # Any: what each work gives
    run: Callable[[], Any]

    def __call__(self) -> None:
        # Nobody waits for it any more.
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.run()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class FairExecutor:
    """
    Stands before the `submit` of a pool; `whose` says for which request work is submitted, in the caller's thread.
    """

    def __init__(self, submit: Callable[[Callable[[], None]], object], whose: Callable[[], Hashable]) -> None:
        self._submit = submit
        self._whose = whose
        self._lock = threading.Lock()
        # The work of each request in its order; whose turn it is comes first.
        self._waiting: dict[Hashable, deque[_Work]] = {}

    def submit(self, run: Callable[..., Result], /, *args: Any, **others: Any) -> Future[Result]:
        """Run this once it is its request's turn; see `concurrent.futures.Executor.submit`."""
        future: Future[Result] = Future()
        with self._lock:
            self._waiting.setdefault(self._whose(), deque()).append(_Work(future, lambda: run(*args, **others)))
        self._submit(self._drain)
        return future

    def _drain(self) -> None:
        """Do what there is to do: a thread that hangs leaves its work to the next one."""
        while (work := self._next()) is not None:
            work()

    def _next(self) -> _Work | None:
        with self._lock:
            if not self._waiting:
                return None
            whose = next(iter(self._waiting))
            works = self._waiting.pop(whose)
            work = works.popleft()
            if works:
                self._waiting[whose] = works
            return work
