"""How much work a request of vLLM's is, by vLLM's own types of requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from appliance.config.limits import LimitsConfig, SloConfig
from appliance.core.errors import RequestError
from appliance.engines.vllm.request_decoder import decode
from appliance.limits.queue import RequestQueue, require_decodable, use_slots
from appliance.limits.timeouts import Timeouts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FOUR = ["a"] * 4
PAIR = {"role": "user", "content": "a"}


def _types() -> dict[str, Any]:  # Any: vLLM has no types for us
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
    from vllm.entrypoints.pooling.pooling.protocol import PoolingRequest
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest

    return {
        "chat": ChatCompletionRequest,
        "completion": CompletionRequest,
        "embedding": EmbeddingCompletionRequest,
        "classification": ClassificationCompletionRequest,
        "pooling": PoolingRequest,
        "rerank": RerankRequest,
        "score": ScoreRequest,
    }


async def _decoded(kind: str, body: dict[str, Any]) -> Any:  # Any: one of vLLM's request types
    limits = LimitsConfig(inputs_per_request=3, choices_per_request=2)
    slot = await RequestQueue(limits, SloConfig()).enter(1, Timeouts.of("m", limits))
    with use_slots(slot):
        return decode(TypeAdapter(_types()[kind]), json.dumps(body).encode())


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        ("completion", {"prompt": FOUR}, "prompt"),
        ("completion", {"prompt": [[1], [2], [3], [4]]}, "prompt"),
        ("completion", {"prompt": "a", "n": 3}, "n"),
        ("completion", {"prompt": "a", "n": 3, "use_beam_search": True}, "n"),
        ("chat", {"messages": [PAIR], "n": 16384}, "n"),
        ("embedding", {"input": FOUR}, "input"),
        ("embedding", {"input": [[1], [2], [3], [4]]}, "input"),
        ("classification", {"input": FOUR}, "input"),
        ("pooling", {"input": FOUR}, "input"),
        ("rerank", {"query": "a", "documents": FOUR}, "documents"),
        ("score", {"text_1": "a", "text_2": FOUR}, "text_2"),
        ("score", {"text_1": FOUR, "text_2": FOUR}, "text_1"),
        ("score", {"queries": "a", "documents": FOUR}, "documents"),
        ("score", {"queries": "a", "items": FOUR}, "items"),
        ("score", {"data_1": "a", "data_2": FOUR}, "data_2"),
    ],
)
async def test_more_than_a_model_takes_is_refused_when_it_is_decoded(
    kind: str, body: dict[str, Any], param: str
) -> None:
    """The error names the field, and the limit."""
    with pytest.raises(RequestError, match=r"limits\.(inputs|choices)_per_request") as caught:
        await _decoded(kind, body)

    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("completion", {"prompt": ["a"] * 3, "n": 2}),
        ("completion", {"prompt": [1, 2, 3, 4, 5]}),
        ("chat", {"messages": [PAIR] * 9}),
        ("chat", {"messages": [PAIR], "n": None}),
        ("embedding", {"input": [1, 2, 3, 4, 5]}),
        ("embedding", {"input": "a b c d e"}),
        ("rerank", {"query": "a", "documents": ["a"] * 3}),
    ],
)
async def test_what_is_no_list_of_texts_is_one(kind: str, body: dict[str, Any]) -> None:
    """Neither the tokens of a text nor the messages of a chat are counted."""
    assert await _decoded(kind, body) is not None


async def _held(body: object) -> None:
    limits = LimitsConfig()
    slot = await RequestQueue(limits, SloConfig()).enter(1, Timeouts.of("m", limits))
    with use_slots(slot):
        await require_decodable(json.dumps(body).encode())


async def test_a_body_of_more_objects_and_lists_than_a_model_takes_is_refused() -> None:
    """Before anything decodes it; the error names the key."""
    with pytest.raises(RequestError, match=r"limits\.json_containers") as caught:
        await _held({"messages": [[[]]] * 1_000_000})

    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "["}}] * 3}] * 3000},
        {"input": [[1] * 100] * 2048},
        {"messages": [PAIR], "tools": [{"function": {"parameters": {"properties": {"[{": {}}}}}] * 1000},
    ],
)
async def test_long_conversations_and_batches_are_not_refused(body: object) -> None:
    """Thousands of turns, hundreds of tools, as many lists of tokens as a request may have."""
    await _held(body)
