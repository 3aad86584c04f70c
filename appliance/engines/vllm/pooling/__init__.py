"""Models that pool: embeddings, scores, classes, each answered from many texts at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from appliance.core.model import Operation
from appliance.engines.vllm.pooling.batch import TextBatcher
from appliance.engines.vllm.pooling.classification import ClassificationEndpoint
from appliance.engines.vllm.pooling.embedding import EmbeddingEndpoint
from appliance.engines.vllm.pooling.encoding import JsonEncoding
from appliance.engines.vllm.pooling.scoring import RerankEndpoint, ScoreEndpoint
from appliance.engines.vllm.serving import Answer, Endpoint, tokenization

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.v1.engine.async_llm import AsyncLLM


def pooling(llm: AsyncLLM, state: State, task: str | None) -> Mapping[Operation, Answer]:
    """What answers each operation of a model that pools; which ones there are depends on vLLM's `task`."""
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.pooling.protocol import PoolingRequest

    texts, name = TextBatcher(llm), state.openai_serving_models.base_model_paths[0].name
    answers: dict[Operation, Answer] = tokenization(state)
    answers[Operation.POOLING] = JsonEncoding(
        Endpoint(TypeAdapter(PoolingRequest), state.serving_pooling, texts="input")
    )
    if state.serving_embedding is not None:
        chats = JsonEncoding(Endpoint(TypeAdapter(EmbeddingRequest), state.serving_embedding, texts="messages"))
        answers[Operation.EMBEDDING] = EmbeddingEndpoint(texts, llm.model_config, name, chats)
    if task in ("classify", "token_classify"):
        answers[Operation.CLASSIFICATION] = ClassificationEndpoint(texts, llm.model_config, name, task)
    if state.serving_scores is not None:
        answers[Operation.RERANK] = RerankEndpoint(state.serving_scores)
        answers[Operation.SCORE] = ScoreEndpoint(state.serving_scores)
    return answers
