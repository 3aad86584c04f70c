"""Tokenization of prompts: in threads that are bounded, in turn, and with the tokens of the model's own tokenizer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.config.limits import LimitsConfig, SloConfig
from appliance.core.errors import RateLimitedError
from appliance.engines.vllm.patches import detokenize_without_the_prompt, tokenize_fairly
from appliance.engines.vllm.tokenization import LONG_TEXT, LongTexts, PlainTokenizer
from appliance.limits.queue import RequestQueue, SequenceSlots

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# A text that takes a thread 25 seconds, as long as nothing was measured.
_HUGE = 50_000_000


class Requests:
    """Requests whose texts come to one thread, which is stuck in the first text until `let_go` is set."""

    def __init__(self, ttft_seconds: float | None = None) -> None:
        self.queue = RequestQueue(LimitsConfig(), SloConfig(ttft_seconds=ttft_seconds))
        self.current = self.request()
        self.texts = LongTexts(1, lambda: self.current)
        self.tokenized: list[int] = []
        self.let_go = threading.Event()

    def request(self, *, is_background: bool = False) -> SequenceSlots:
        return SequenceSlots(self.queue, 0, 0.0, is_background)

    def submit(self, size: int, request: SequenceSlots | None = None) -> Future[None]:
        self.current = request or self.request()
        return self.texts.submit(size, self._tokenize, size)

    def _tokenize(self, size: int) -> None:
        self.let_go.wait(60)
        self.tokenized.append(size)


@pytest.fixture
def requests() -> Iterator[Requests]:
    """Requests without a promised time."""
    requests = Requests()
    yield requests
    requests.let_go.set()
    requests.texts.close()


@pytest.mark.parametrize(("cores", "threads"), [(0, 1), (1, 1), (2, 1), (4, 3), (100, 8)])
def test_there_are_fewer_threads_than_cores(cores: int, threads: int) -> None:
    """One core is the event loop's, where there are several, and no machine has threads without end."""
    texts = LongTexts(cores, lambda: None)

    assert texts.threads == threads
    texts.close()


def test_a_refused_text_is_never_tokenized(requests: Requests) -> None:
    """What others wait for would take too long; the answer says when to come again, and leaves no trace."""
    first = requests.submit(_HUGE)

    with pytest.raises(RateLimitedError, match="take about 25 seconds to tokenize") as refused:
        requests.submit(1)

    assert refused.value.retry_after == 15
    assert requests.queue.refused["tokenizer"] == 1
    requests.let_go.set()
    first.result(60)
    assert requests.tokenized == [_HUGE]
    requests.submit(2).result(60)


def test_a_promised_time_is_the_longest_wait() -> None:
    """`slo.ttft_seconds` may be longer than what requests wait otherwise, and shorter."""
    for seconds, is_refused in ((30, False), (20, True)):
        requests = Requests(seconds)
        requests.submit(_HUGE)
        if is_refused:
            with pytest.raises(RateLimitedError):
                requests.submit(1)
        else:
            requests.submit(1)
        requests.let_go.set()
        requests.texts.close()


def test_a_request_of_many_texts_is_refused_for_none_of_its_own(requests: Requests) -> None:
    """It was let in with the first; of its texts, one is before the text of another request."""
    request = requests.request()
    for _ in range(3):
        requests.submit(_HUGE, request)
    requests.submit(15_000_000, request)

    assert requests.texts.wait_seconds() == pytest.approx(165 / 4 / 2)


def test_work_that_nobody_waits_for_is_not_refused(requests: Requests) -> None:
    """A line of a batch waits as long as it takes."""
    requests.submit(_HUGE)
    waiting = requests.submit(1, requests.request(is_background=True))
    requests.let_go.set()

    waiting.result(60)
    assert requests.tokenized == [_HUGE, 1]


def test_a_client_that_leaves_is_out_of_the_queue(requests: Requests) -> None:
    """Its text is not tokenized, and others are not refused for it."""
    running = requests.submit(1)
    left = requests.submit(_HUGE)
    left.cancel()
    next_one = requests.submit(2)
    requests.let_go.set()
    running.result(60)
    next_one.result(60)

    assert requests.tokenized == [1, 2]


class Renderer:
    """What vLLM's renderer has, with a tokenizer that is stuck in long texts."""

    def __init__(self) -> None:
        from vllm.renderers.base import _SwappableExecutor

        self.let_go = threading.Event()
        self.tokenizer = SimpleNamespace(truncation_side="right")
        self._executor = _SwappableExecutor(1)
        self._resources = SimpleNamespace(callback=lambda _: None)
        self._tokenize_prompt_async: Any = None

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def _wants_offsets(self, prompt: Any, params: Any) -> bool:
        return False

    def _tokenize_prompt(self, prompt: Any, params: Any) -> int:
        if len(prompt["prompt"]) >= LONG_TEXT:
            self.let_go.wait(60)
        return len(prompt["prompt"])


async def test_short_prompts_do_not_wait_for_long_ones() -> None:
    """Nor does the event loop, while all threads have a long one and more of them wait."""
    renderer: Any = Renderer()
    tokenize_fairly(renderer, 1)
    params = SimpleNamespace(max_input_tokens=None, truncation_side=None)
    long_ones = [renderer._tokenize_prompt_async({"prompt": "x" * LONG_TEXT}, params) for _ in range(20)]

    assert await renderer._tokenize_prompt_async({"prompt": "short"}, params) == 5
    assert not any(each.done() for each in long_ones)
    renderer.let_go.set()
    assert await asyncio.gather(*long_ones) == [LONG_TEXT] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer of bytes and a few words, which puts tokens of its own around a text."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    from vllm.tokenizers.hf import get_cached_tokenizer, maybe_make_thread_pool

    raw = tokenizers.Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the sea and the sky, the ships and the people"] * 9, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)], pair=None
    )
    # As the files of some encoders have it.
    raw.enable_truncation(8)
    raw.enable_padding(length=8)
    return maybe_make_thread_pool(get_cached_tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw)), 1)


_TEXTS = (
    "",
    "the sea",
    "<|user|>the sky</s> and  more",
    "caf\u00e9 cafe\u0301 \U0001f600\u6d77",
    "the ships and " * 3000,
)


@pytest.mark.parametrize(
    "options", [{}, {"truncation": True, "max_length": 7}, {"truncation": True, "max_length": 9999}]
)
@pytest.mark.parametrize("add_special_tokens", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_those_of_the_tokenizer(
    tokenizer: Any, side: str, add_special_tokens: bool, options: dict[str, Any]
) -> None:
    """Also of a text that is cut, on either side, with the tokens around it."""
    tokenizer.truncation_side = side
    options = {"add_special_tokens": add_special_tokens, **options}
    plain = PlainTokenizer.of(tokenizer)

    assert plain is not None
    for text in _TEXTS:
        assert plain(text, **options)["input_ids"] == tokenizer(text, **options)["input_ids"]


@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_the_faster_library_has_the_same_tokens(tokenizer: Any, add_special_tokens: bool) -> None:
    """Of a long text of many scripts, spaces, numbers and special tokens."""
    scripts = [
        chr(code) for start in (1, 0x250, 0x600, 0x900, 0x3040, 0x4E00, 0x1F600) for code in range(start, start + 96)
    ]
    random = Random(1)
    text = "".join(
        random.choice([*scripts, "'s ", " the", "\r\n", "   ", "12.5", "<|user|>", "e\u0301"]) for _ in range(LONG_TEXT)
    )
    plain = PlainTokenizer.of(tokenizer)

    assert plain is not None
    assert plain.fast_encoder is not None
    expected = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    assert plain.fast_encoder.encode(text, add_special_tokens=add_special_tokens).ids == expected
    assert plain(text, add_special_tokens=add_special_tokens)["input_ids"] == expected


@pytest.mark.parametrize("kind", ["BertNormalizer", "vocabulary"])
def test_what_the_faster_library_lacks_is_left_to_the_tokenizer(kind: str) -> None:
    """A tokenizer that it cannot read, and a text with a character of no token."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    raw = tokenizers.Tokenizer(models.BPE({"a": 0, "\u0120": 1}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "BertNormalizer":
        raw.normalizer = normalizers.BertNormalizer()
    text = "a b " * LONG_TEXT
    plain = PlainTokenizer(SimpleNamespace(_tokenizer=raw, split_special_tokens=False, truncation_side="right"))

    assert plain(text, add_special_tokens=False)["input_ids"] == raw.encode(text, add_special_tokens=False).ids


def test_a_tokenizer_that_does_more_is_asked_itself(tokenizer: Any) -> None:
    """A class of a model may change a text before it is encoded; others are not made for threads."""

    class Changing(type(tokenizer)):  # type: ignore[misc] # made at run time
        def _encode_plus(self, text: str, **kwargs: Any) -> Any:
            return super()._encode_plus(f"{text}!", **kwargs)

    changing, replaced = Changing.__new__(Changing), object.__new__(type(tokenizer))
    changing._tokenizer, replaced._tokenizer = tokenizer._tokenizer, object()

    assert PlainTokenizer.of(changing) is None
    assert PlainTokenizer.of(replaced) is None
    assert PlainTokenizer.of(None) is None


@pytest.mark.parametrize("text", ["the sea " * 500, "\U0001f600" * 400, "the " * 2000 + "<|user|>"])
def test_a_response_is_detokenized_as_after_the_whole_prompt(tokenizer: Any, text: str) -> None:
    """The tokens after it are bytes of one character, words and spaces; the request itself keeps its prompt."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    detokenize_without_the_prompt()
    detokenize_without_the_prompt()
    plain = PlainTokenizer.of(tokenizer)
    assert plain is not None
    prompt = plain(text, add_special_tokens=False)["input_ids"]
    output = plain(" the sky\u6d77 <|user|>\U0001f600", add_special_tokens=False)["input_ids"]
    request = EngineCoreRequest(
        request_id="a",
        prompt_token_ids=list(prompt),
        mm_features=None,
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )

    def written(create: Any) -> list[str]:
        detokenizer = FastIncrementalDetokenizer.__new__(FastIncrementalDetokenizer)
        create(detokenizer, tokenizer, request)
        return [detokenizer.decode_next(token) for token in output]

    ours = FastIncrementalDetokenizer.__init__
    assert written(ours) == written(ours.__wrapped__)
    assert request.prompt_token_ids == prompt
