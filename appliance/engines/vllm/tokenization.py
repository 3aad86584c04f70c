"""How prompts are tokenized: off the event loop, long ones in threads of their own, requests in turn.

A text far too long is not read to its end, and a long one that would wait for too long is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.limits.queue import SequenceSlots
from appliance.limits.rate_limiter import refusal

if TYPE_CHECKING:
    from vllm.renderers import TokenizeParams
    from vllm.tokenizers import TokenizerLike

Result = TypeVar("Result")

LONG_TEXT = 16 * 1024
"""Characters of a text that takes several milliseconds, in which short ones are not to wait."""

# More threads than requests with long prompts are usually sent at once.
_MAX_THREADS = 8

# Without a promised time, a client that would wait for longer is told to come again.
_MAX_WAIT_SECONDS = 10.0

# Characters per second of one thread, until some were measured, and the weight of a new measurement.
_CHARACTERS_PER_SECOND = 2e6
_WEIGHT = 0.2

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


class LongTexts:
    """Threads for long texts, in which requests take turns; one core is left to the event loop if there are several.

    Their priority is that of the event loop: with a lower one, they would keep the GIL while others have the core.
    """

    def __init__(self, cores: int, current_slots: Callable[[], SequenceSlots | None]) -> None:
        self.threads = min(_MAX_THREADS, max(1, cores - 1))
        self._current_slots = current_slots
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="tokenize")
        self._turns = FairExecutor(self._pool.submit, current_slots)
        self._lock = threading.Lock()
        # The sizes of the texts of each request that are not tokenized yet.
        self._sizes: dict[Hashable, list[int]] = {}
        self._speed = _CHARACTERS_PER_SECOND

    def submit(self, size: int, function: Callable[..., Result], /, *args: Any) -> Future[Result]:
        """Tokenize a text of so many characters when its request's turn comes; a cancelled one leaves the queue.

        Raises:
            RateLimitedError: it would wait for too long.
        """
        request = self._current_slots()
        self._require_soon(request)

        def run() -> Result:
            began = time.monotonic()
            result = function(*args)
            self._speed += _WEIGHT * (size / max(time.monotonic() - began, 1e-9) - self._speed)
            return result

        with self._lock:
            self._sizes.setdefault(request, []).append(size)
        future = self._turns.submit(run)
        future.add_done_callback(lambda _: self._leave(request, size))
        return future

    def close(self) -> None:
        """Drop what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait_seconds(self) -> float:
        """Return the estimated time until the turn of a new request: one text of each other request is before it."""
        with self._lock:
            ahead = sum(sum(sizes) / len(sizes) for sizes in self._sizes.values())
        return ahead / self._speed / self.threads

    def _require_soon(self, request: SequenceSlots | None) -> None:
        # Work in the background, and a request that was let in, wait as long as it takes.
        if request is None or request.is_background or request in self._sizes:
            return
        seconds, limit = self.wait_seconds(), request.queue.slo.ttft_seconds or _MAX_WAIT_SECONDS
        if seconds > limit:
            message = f"The prompts of other requests take about {seconds:.0f} seconds to tokenize; try again later"
            request.queue.refused["tokenizer"] += 1
            raise refusal("tokenizer", message, seconds - limit, code="overloaded")

    def _leave(self, request: Hashable, size: int) -> None:
        with self._lock:
            sizes = self._sizes[request]
            sizes.remove(size)
            if not sizes:
                del self._sizes[request]


# What tokenizers treat differently; two that agree on all of it are made from the same file.
_SAMPLES = (
    "",
    "It's 1234.5 o'clock,\u00a0isn't it?  \n\n\tdef f(x):\r\n    return x\n ",
    "cafe\u0301 Gr\u00fc\u00dfe \u4f60\u597d\u3002\u0645\u0631\u062d\u0628\u0627 \U0001f468\u200d\U0001f469 ",
)


class PlainTokenizer:
    """Encodes texts as a tokenizer of transformers does, with the tokenizer below it, which threads can share.

    It computes no offsets and no masks: they take half of the time, and the GIL for milliseconds where they are freed.
    """

    def __init__(self, tokenizer: Any) -> None:  # Any: transformers has no types for us
        # vLLM encodes with copies, so nothing else changes these.
        self._tokenizer, self._encoder = tokenizer, tokenizer._tokenizer
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._encoder.encode_special_tokens = tokenizer.split_special_tokens
        self.truncation_side: str = tokenizer.truncation_side

    @classmethod
    def of(cls, tokenizer: TokenizerLike | None) -> PlainTokenizer | None:
        """Return one for this tokenizer; None if it does more than the tokenizer below it."""
        from vllm.tokenizers.hf import ThreadSafeHFTokenizerMixin

        # vLLM may have put another library in the place of tokenizers (VLLM_USE_FASTOKENS).
        if (
            not isinstance(tokenizer, ThreadSafeHFTokenizerMixin)
            or type(tokenizer._tokenizer).__module__ != "tokenizers"
        ):
            return None
        libraries = ("transformers.tokenization_utils", "vllm.tokenizers.hf")
        names = {"__call__", "_encode_plus", "_switch_to_input_mode"}
        others = (each for each in type(tokenizer).__mro__ if not each.__module__.startswith(libraries))
        return None if any(names & vars(each).keys() for each in others) else cls(tokenizer)

    def __call__(
        self, text: str, *, add_special_tokens: bool, truncation: bool = False, max_length: int | None = None
    ) -> dict[str, list[int]]:
        """Do what the tokenizer's method does."""
        ids = self._encode(text, add_special_tokens)
        if not truncation or max_length is None or len(ids) <= max_length:
            return {"input_ids": ids}
        if self.truncation_side == "right" and not add_special_tokens:
            return {"input_ids": ids[:max_length]}
        # It knows which special tokens stay.
        options = {"add_special_tokens": add_special_tokens, "truncation": True, "max_length": max_length}
        return {"input_ids": self._tokenizer(text, **options)["input_ids"]}

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) >= LONG_TEXT and self.fast_encoder is not None:
            # It refuses characters that a vocabulary lacks, and texts that take too long to split.
            with contextlib.suppress(ValueError, RuntimeError):
                found: list[int] = self.fast_encoder.encode(text, add_special_tokens=add_special_tokens).ids
                return found
        (encoding,) = self._encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    @cached_property
    def fast_encoder(self) -> Any:  # Any: the library may be missing
        """The same tokenizer in fastokens, which is much faster; None without it, or if the tokens differ.

        The first long text creates it, because it takes memory.
        """
        if self._encoder.encode_special_tokens:
            return None
        try:
            from fastokens import Tokenizer

            encoder = Tokenizer.from_json_str(self._encoder.to_str())
            for text, special in itertools.product((*_SAMPLES, *self._special_texts()), (False, True)):
                (expected,) = self._encoder.encode_batch_fast([text], add_special_tokens=special)
                if list(encoder.encode(text, add_special_tokens=special).ids) != expected.ids:
                    return None
        except (ImportError, ValueError, RuntimeError):
            return None
        return encoder

    def _special_texts(self) -> Iterator[str]:
        for token in self._encoder.get_added_tokens_decoder().values():
            yield f"a {token.content} b{token.content}c"


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
