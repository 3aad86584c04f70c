"""The tokens of answers that other servers made."""

from __future__ import annotations

import pytest

from appliance.core.request_context import RequestContext
from appliance.core.token_usage import TokenUsage

Tokens = tuple[int | None, int | None, int | None]


def _tokens(record: RequestContext) -> Tokens:
    return record.prompt_tokens, record.output_tokens, record.cached_tokens


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}', (3, 4, None)),
        (b'{"usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}}', (3, None, 2)),
        (
            b'{"usage": {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 1}}}',
            (3, 4, 1),
        ),
        (b'{"usage": {"input_tokens": 3, "cache_read_input_tokens": 5, "output_tokens": 0}}', (8, 0, 5)),
        (b'{"response": {"usage": {"input_tokens": 1, "output_tokens": 2}}}', (1, 2, None)),
        (b'{"usage": {"prompt_tokens": -3}}', (None, None, None)),
        (b'{"usage": {"prompt_tokens": "many"}}', (None, None, None)),
        (b'{"usage": null}', (None, None, None)),
        (b'{"usage": ', (None, None, None)),
        (b'"usage"', (None, None, None)),
        (b"[" * 100_000, (None, None, None)),
    ],
)
def test_each_protocols_usage_is_understood(body: bytes, tokens: Tokens) -> None:
    """And what is none says nothing."""
    record = RequestContext("a")

    TokenUsage(record).read(body)

    assert _tokens(record) == tokens


def test_the_last_word_of_a_stream_counts() -> None:
    """Anthropic says the prompt in its first event and the answer in its last; others repeat the sum so far."""
    record = RequestContext("a")
    usage = TokenUsage(record)

    usage.feed(b'data: {"message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}\n\n')
    usage.feed(b'data: {"delta": "they speak of \\"usage\\""}\n\ndata: {"usage": null}\n\n')
    usage.feed(b'event: message_delta\ndata: {"usage": {"output_tokens": 4}}\n\ndata: [DONE]\n\n')

    assert _tokens(record) == (9, 4, None)


def test_several_answers_for_one_request_add_up() -> None:
    """An adapter may need several."""
    record = RequestContext("a")
    one, two = TokenUsage(record), TokenUsage(record)

    one.read(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}')
    two.read(b'{"usage": {"prompt_tokens": 10, "completion_tokens": 20}}')
    one.read(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 3}}')

    assert _tokens(record) == (11, 23, None)


def test_what_an_engine_of_ours_counts_is_not_read_again() -> None:
    """It knows better."""
    record = RequestContext("a")
    assert TokenUsage(record).is_needed

    record.is_metered = True

    assert not TokenUsage(record).is_needed


CHAT = b'data: {"choices": [{"delta": {"content": "say \\"delta\\": and \\"text\\":"}}]}\n\n'
COMPLETION = b'data: {"choices": [{"text": "a"}]}\n\n'
RESPONSE = b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n'
MESSAGE = b'data: {"type": "content_block_delta", "delta":{"type": "text_delta", "text": "a"}}\n\n'


@pytest.mark.parametrize("event", [CHAT, COMPLETION, RESPONSE, MESSAGE])
def test_an_answer_that_tells_no_tokens_is_counted_by_its_events(event: bytes) -> None:
    """One for each piece of text, until a usage says it better."""
    record = RequestContext("a")
    usage = TokenUsage(record)
    for _ in range(3):
        usage.feed(event)
    usage.feed(event * 2 + b"data: [DONE]\n\n")
    assert _tokens(record) == (None, 5, None)
    assert record.settle() == (None, 5)

    usage.feed(b'data: {"usage": {"prompt_tokens": 2, "completion_tokens": 4}}\n\n')

    assert _tokens(record) == (2, 4, None)
    assert record.settle() == (2, -1)
