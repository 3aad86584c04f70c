"""Operations of models that pool: embeddings, scores, classes, each for many texts at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from appliance.core.model import Operation
from appliance.engines.vllm.pooling.batch import TextBatcher
from appliance.engines.vllm.pooling.classification import ClassificationEndpoint, label_names
from appliance.engines.vllm.pooling.embedding import EmbeddingEndpoint, JsonOnly
from appliance.engines.vllm.pooling.scoring import RerankEndpoint, ScoreEndpoint
from appliance.engines.vllm.serving import Endpoint, Handler, tokenization_handlers

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.v1.engine.async_llm import AsyncLLM


def pooling_handlers(llm: AsyncLLM, state: State, task: str | None) -> Mapping[Operation, Handler]:
    """Return the handlers of a model that pools, from what `init_app_state` built; `task` is vLLM's."""
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.pooling.protocol import PoolingRequest

    batcher, name = TextBatcher(llm), state.openai_serving_models.base_model_paths[0].name
    handlers = tokenization_handlers(state)
    handlers[Operation.POOLING] = JsonOnly(
        Endpoint(TypeAdapter(PoolingRequest), state.serving_pooling, text_field="input")
    )
    if state.serving_embedding is not None:
        fallback = JsonOnly(Endpoint(TypeAdapter(EmbeddingRequest), state.serving_embedding, text_field="messages"))
        handlers[Operation.EMBEDDING] = EmbeddingEndpoint(batcher, name, fallback)
    if task in ("classify", "token_classify"):
        labels = label_names(llm.model_config.hf_config.id2label)
        handlers[Operation.CLASSIFICATION] = ClassificationEndpoint(batcher, labels, name, task)
    if state.serving_scores is not None:
        handlers[Operation.RERANK] = RerankEndpoint(state.serving_scores)
        handlers[Operation.SCORE] = ScoreEndpoint(state.serving_scores)
    return handlers
