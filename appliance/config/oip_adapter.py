"""The section of the kind `oip`: a target that speaks the Open Inference Protocol."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.config.adapters import Count, OfferingConfig, RequiredChatConfig, Text
from appliance.config.base import BaseConfig


class OipTextConfig(BaseConfig):
    """Text in, text out."""

    input: Text | None = None
    """Name of the tensor that takes the prompt; unset is `text_input`, and with v1 the prompt itself is an instance."""

    output: Text | None = None
    """Name of the tensor that holds the answer; unset is `text_output`, and with v1 a prediction is the answer."""

    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Parameters of every request; the client's sampling fields go over them."""


class OipChatConfig(OipTextConfig, RequiredChatConfig):
    """Messages in, through a chat template, text out."""


class OipEmbeddingsConfig(BaseConfig):
    """Texts in, vectors out."""

    input: Text | None = None
    """Name of the tensor that takes the texts; unset is `text_input`, and with v1 each text itself is an instance."""

    output: Text | None = None
    """Name of the tensor that holds the vectors, of shape [texts, dimensions]; unset is the only one there is."""


class OipRerankConfig(BaseConfig):
    """Pairs of a query and a document in, scores out."""

    query: Text = "query"
    """Name of the tensor that takes the query, once for each document."""

    document: Text = "document"
    """Name of the tensor that takes the documents."""

    output: Text | None = None
    """Name of the tensor that holds one score for each document; unset is the only one there is."""


class OipConfig(OfferingConfig):
    """The target speaks the Open Inference Protocol at `target.url`."""

    kind: Literal["oip"]
    """What the target speaks."""

    version: Literal["v1", "v2"] = "v2"
    """`v2` posts tensors to `/v2/models/NAME/infer`, `v1` posts instances to `/v1/models/NAME:predict`."""

    text_rank: Literal[1, 2] = 1
    """Dimensions of tensors of text: 1 is the shape [texts], 2 is [texts, 1]; v2 only."""

    max_batch: Count | None = None
    """Most texts in one request to the target; unset is no limit."""

    chat: OipChatConfig | None = None
    """How chat completions are made; unset does not offer them."""

    completions: OipTextConfig | None = None
    """How completions are made; unset does not offer them."""

    embeddings: OipEmbeddingsConfig | None = None
    """How embeddings are made; unset does not offer them."""

    rerank: OipRerankConfig | None = None
    """How documents are ranked; unset does not offer it."""
