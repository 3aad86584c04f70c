"""The public response classes have the fields that the product's own have."""

from __future__ import annotations

import msgspec
import pytest
from pydantic import BaseModel

from appliance.core import openai_types
from appliance.openai import types


@pytest.mark.parametrize(
    ("public", "own"),
    [
        (types.ChatCompletion, openai_types.ChatCompletion),
        (types.ChatCompletionChoice, openai_types.ChatCompletionChoice),
        (types.ChatMessage, openai_types.ChatMessage),
        (types.Completion, openai_types.Completion),
        (types.CompletionChoice, openai_types.CompletionChoice),
        (types.EmbeddingData, openai_types.EmbeddingData),
        (types.Rerank, openai_types.Rerank),
        (types.RerankDocument, openai_types.RerankDocument),
        (types.RerankResult, openai_types.RerankResult),
        (types.Usage, openai_types.Usage),
    ],
)
def test_a_public_class_has_every_field_of_our_own(public: type[BaseModel], own: type[msgspec.Struct]) -> None:
    """Whoever adds a field to one adds it to the other."""
    assert set(own.__struct_fields__) <= set(public.model_fields)
