"""Work of several requests on one thread, whose steps the test takes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from appliance.engines.vllm.tokenization import FairExecutor


class Requests:
    """A pool that runs what was submitted when the test says so, and requests that submit work to it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._whose = ""
        self._submitted: list[Callable[[], None]] = []
        self._pool = FairExecutor(self._submitted.append, lambda: self._whose)

    def submit(self, whose: str, name: str) -> Future[None]:
        """Work of this request; its name is noted when it is done."""
        self._whose = whose
        return self._pool.submit(self.done.append, name)

    def run(self, count: int) -> None:
        """So many of the things that were submitted to the pool."""
        for _ in range(count):
            self._submitted.pop(0)()


def test_a_request_of_much_work_takes_turns_with_others() -> None:
    """What another one submits is next, however much there was before it."""
    requests = Requests()
    for number in range(3):
        requests.submit("large", f"large {number}")
    requests.submit("small", "small")
    requests.submit("other", "other")
    requests.run(1)

    assert requests.done == ["large 0", "small", "other", "large 1", "large 2"]
    requests.run(4)


def test_work_that_nobody_waits_for_is_not_done() -> None:
    """A client that left has cancelled it."""
    requests = Requests()
    first, second = requests.submit("a", "first"), requests.submit("a", "second")
    first.cancel()
    requests.run(2)

    assert requests.done == ["second"]
    assert second.done()


def test_results_and_errors_come_to_whoever_submitted() -> None:
    """As with any pool of threads."""
    with ThreadPoolExecutor(1) as threads:
        pool = FairExecutor(threads.submit, lambda: None)
        good, bad = pool.submit(pow, 2, 5), pool.submit(int, "x")

        assert good.result(60) == 32
        with pytest.raises(ValueError, match="invalid literal"):
            bad.result(60)


def test_work_behind_a_thread_that_hangs_is_done_by_the_next_one() -> None:
    """
    vLLM puts a new pool in the place of one whose template does not end; what was submitted to the old one is lost.
    """
    requests = Requests()
    requests.submit("a", "before")
    requests._submitted.clear()
    requests.submit("b", "after")
    requests.run(1)

    assert requests.done == ["before", "after"]
