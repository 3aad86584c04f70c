"""OpenAI's answers out of texts, vectors and scores.

Source: https://platform.openai.com/docs/api-reference/completions/object and .../embeddings/object; rerank is Cohere's
and Jina's, https://docs.cohere.com/reference/rerank and https://api.jina.ai/redoc.
"""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.adapters.messages import Json
from appliance.adapters.requests import EmbeddingRequest, RerankRequest
from appliance.core.errors import GatewayError, RequestError


@dataclass(frozen=True, slots=True)
class AdapterUsage:
    """Tokens, as far as the target tells; 0 where it does not."""

    prompt: int = 0
    answer: int = 0

    @property
    def is_told(self) -> bool:
        """The target told something."""
        return bool(self.prompt or self.answer)

    def __add__(self, other: AdapterUsage) -> AdapterUsage:
        return AdapterUsage(self.prompt + other.prompt, self.answer + other.answer)

    def describe(self) -> Json:
        """As completions have it."""
        total = self.prompt + self.answer
        return {"prompt_tokens": self.prompt, "completion_tokens": self.answer, "total_tokens": total}


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """What a target wrote, or a piece of it: `reason` is why it ended, None while it goes on."""

    text: str
    reason: str | None = None
    usage: AdapterUsage = AdapterUsage()


def head(kind: str, prefix: str, model: str) -> Json:
    """What every object of an answer begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def completion_choice(index: int, text: str, reason: str | None) -> Json:
    """One choice of a completion, or of a chunk of it."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def embeddings(vectors: Sequence[Sequence[float]], request: EmbeddingRequest, model: str, usage: AdapterUsage) -> Json:
    """The vectors in the order of the texts, as numbers or as base64 of little-endian float32.

    Raises:
        GatewayError: there are more or fewer vectors than texts, or their lengths differ.
        RequestError: the client wants another length.
    """
    if len(vectors) != len(request.texts):
        raise GatewayError(f"The target gave {len(vectors)} vectors for {len(request.texts)} texts")
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        raise GatewayError("The target gave vectors of different lengths")
    if request.dimensions not in (None, *sizes):
        raise RequestError(
            f"dimensions is {request.dimensions}, and the vectors of this model have {sizes.pop()}", param="dimensions"
        )
    made = [_base64(vector) if request.is_base64 else list(vector) for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(made)]
    # OpenAI's clients expect a usage here, told or not.
    count = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    return {"object": "list", "data": data, "model": model, "usage": count}


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def rerank(scores: Sequence[float], request: RerankRequest, model: str, usage: AdapterUsage) -> Json:
    """The documents, best first.

    Raises:
        GatewayError: there are more or fewer scores than documents.
    """
    if len(scores) != len(request.documents):
        raise GatewayError(f"The target gave {len(scores)} scores for {len(request.documents)} documents")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": request.documents[index]}} if request.returns_documents else {})
        for index in order
    ]
    made = {"id": f"rerank-{uuid.uuid4().hex}", "model": model, "results": results}
    return made | {"usage": {"total_tokens": usage.prompt + usage.answer}}
