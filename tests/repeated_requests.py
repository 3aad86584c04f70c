"""Clients that send requests without a pause while the server changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from server_process import ServerProcess, wait_until


class RepeatedRequests:
    """Sends requests from a thread for each body during a block, and records failures."""

    def __init__(self, server: ServerProcess, path: str, *bodies: object) -> None:
        self._server = server
        self._path = path
        self._has_ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(body,)) for body in bodies]
        self.answered = 0
        self.failures: list[tuple[int, Any]] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended.set()
        for thread in self._threads:
            thread.join(120)

    def wait_for_more(self, count: int = 10, seconds: float = 60) -> None:
        """Wait for so many more responses, so that there is traffic before and after a change."""
        wanted = self.answered + count
        wait_until(lambda: self.answered >= wanted or bool(self.failures), seconds, lambda: str(self.failures))

    def _ask(self, body: object) -> None:
        while not self._has_ended.is_set():
            status, answer = self._server.post(self._path, body)
            if status == 200:
                self.answered += 1
            else:
                self.failures.append((status, answer))
            time.sleep(0.005)


def chat_bodies(*models: str) -> Sequence[dict[str, Any]]:
    """Return the same chat request for each of the models."""
    question = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    return [{"model": model, **question} for model in models]
