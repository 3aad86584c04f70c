"""The tensors of encoders of BERT's kind, as their `config.json` lets them be expected."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.planner.model_config import Architecture

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def encoder(model: Architecture) -> Shapes:
    """Names and shapes, layer by layer, with the pooler that BERT's and RoBERTa's checkpoints have."""
    hidden, inner = model.hidden, model.intermediate
    yield "embeddings.word_embeddings.weight", (model.vocabulary, hidden)
    yield "embeddings.position_embeddings.weight", (int(model.text.get("max_position_embeddings") or 0), hidden)
    if types := model.text.get("type_vocab_size"):
        yield "embeddings.token_type_embeddings.weight", (types, hidden)
    yield from _norm("embeddings.LayerNorm", hidden)
    for layer in range(model.layers):
        prefix = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            yield from _linear(f"{prefix}attention.self.{part}", hidden, hidden)
        yield from _linear(f"{prefix}attention.output.dense", hidden, hidden)
        yield from _norm(f"{prefix}attention.output.LayerNorm", hidden)
        yield from _linear(f"{prefix}intermediate.dense", inner, hidden)
        yield from _linear(f"{prefix}output.dense", hidden, inner)
        yield from _norm(f"{prefix}output.LayerNorm", hidden)
    yield from _linear("pooler.dense", hidden, hidden)


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, size: int) -> Shapes:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)
