"""How vLLM's renderer tokenizes: requests take turns on its thread, and a text far too long is not read to its end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from vllm.renderers import TokenizeParams
    from vllm.tokenizers import TokenizerLike

Result = TypeVar("Result")

# A token is about four characters of English; this many characters for each token are more than enough.
_CHARACTERS_PER_TOKEN = 6

# Where a text is cut, its last tokens may differ from those of the whole text.
_MARGIN_TOKENS = 64


class FairExecutor:
    """Round robin over requests, in front of the `submit` of a thread pool.

    vLLM tokenizes on one thread, first in, first out: one request with thousands of texts would delay all others.
    """

    def __init__(self, submit: Callable[[Callable[[], None]], object], current_request: Callable[[], Hashable]) -> None:
        """`current_request` identifies the request that work is submitted for, in the caller's thread."""
        self._submit = submit
        self._current_request = current_request
        self._lock = threading.Lock()
        # The work of each request, in order; the first request is next.
        self._queues: dict[Hashable, deque[tuple[Future[Any], Callable[[], Any]]]] = {}

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run the function when its request's turn comes; see `concurrent.futures.Executor.submit`."""
        future: Future[Result] = Future()
        with self._lock:
            queue = self._queues.setdefault(self._current_request(), deque())
            queue.append((future, lambda: function(*args, **kwargs)))
        self._submit(self._run_all)
        return future

    def _run_all(self) -> None:
        # All of it, because vLLM replaces a pool whose thread hangs: what was submitted to the old one is left here.
        while True:
            with self._lock:
                if not self._queues:
                    return
                request = next(iter(self._queues))
                queue = self._queues.pop(request)
                future, function = queue.popleft()
                if queue:
                    self._queues[request] = queue
            # A future that its request has cancelled is skipped.
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)


def cut_long_text(tokenizer: TokenizerLike, text: str, params: TokenizeParams) -> str:
    """Return the beginning of a text if that alone has more tokens than are taken, else the text.

    Either is refused, or truncated at its end, alike; but a tokenizer reads the whole text first, for seconds.
    """
    limit = params.max_input_tokens
    is_cut_left = "left" in (params.truncation_side, getattr(tokenizer, "truncation_side", None))
    if limit is None or is_cut_left or len(text) <= 2 * limit * _CHARACTERS_PER_TOKEN:
        return text
    beginning = text[: limit * _CHARACTERS_PER_TOKEN]
    enough = limit + _MARGIN_TOKENS
    tokens = tokenizer(beginning, add_special_tokens=False, truncation=True, max_length=enough)
    return beginning if len(tokens["input_ids"]) >= enough else text
