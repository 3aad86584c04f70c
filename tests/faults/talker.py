"""Models in Python that talk as long as they are asked to, and count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

from appliance import InferOutput, InferRequest, InferResponse, Model
from appliance.core.errors import RequestError
from appliance.openai import Context, OpenAIEncoderModel, OpenAIGenerativeModel, RawRequest
from appliance.openai.types import (
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
)

FLOOD = "x" * 65536


class Talker(OpenAIGenerativeModel):
    """Says what it hears; asked to flood or to babble, it does not end; asked to tick, it says a word each tenth of a
    second.
    """

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> AsyncGenerator[ChatCompletionChunk]:
        text = str(request.messages[-1].get("content", "")) if request.messages else ""
        yield _chunk(text)
        while text == "flood":
            yield _chunk(FLOOD)
        while text == "babble":
            yield _chunk("word ")
        for number in range(50 if text == "tick" else 0):
            await asyncio.sleep(0.1)
            yield _chunk(f"{number} ")

    async def create_completion(
        self, request: CompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Completion:
        return Completion.model_validate({"choices": [{"index": 0, "text": str(request.prompt)}]})


class Counter(OpenAIEncoderModel):
    """The length of each text as its vector."""

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Embedding:
        texts = request.input if isinstance(request.input, list) else [request.input]
        data = [{"index": number, "embedding": [float(len(str(text)))]} for number, text in enumerate(texts)]
        return Embedding.model_validate({"data": data})


class Doubling(Model):
    """Tensors times two."""

    def predict(self, payload: Any, headers: Any = None) -> Any:
        try:
            if isinstance(payload, InferRequest):
                outputs = [InferOutput.from_numpy("doubled", each.as_numpy() * 2) for each in payload.inputs]
                return InferResponse(payload.id, self.name, outputs)
            return {"predictions": np.array(payload["instances"], dtype=np.float64) * 2}
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise RequestError("these are no numbers to double") from error


def _chunk(text: str) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate({"choices": [{"index": 0, "delta": {"content": text}}]})
