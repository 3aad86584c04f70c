"""Models in Python that the servers of this suite serve, as a user would write them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from appliance import InferOutput, InferRequest, InferResponse, Model
from appliance.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from appliance.openai.types import (
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
)


class Echo(OpenAIGenerativeModel):
    """Repeats the last message, word by word; waits for the file `gate` before it answers, unless that is empty.

    `load_gate` is the same for its load. The message `fail` raises an error, `fail late` in the middle of a stream.
    """

    def __init__(self, name: str, gate: str = "", load_gate: str = "") -> None:
        super().__init__(name)
        self.gate, self.load_gate = gate, load_gate

    async def load(self) -> None:
        await _exists(self.load_gate)

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: object = None, context: object = None
    ) -> AsyncGenerator[ChatCompletionChunk]:
        await _exists(self.gate)
        text = str(request.messages[-1]["content"])
        if text == "fail":
            raise RuntimeError("a secret of the model")
        for word in text.split():
            yield ChatCompletionChunk.model_validate({"choices": [{"delta": {"content": f"{word} "}}]})
        if text == "fail late":
            raise RuntimeError("a secret of the model")

    async def create_completion(
        self, request: CompletionRequest, raw_request: object = None, context: object = None
    ) -> Completion:
        return Completion.model_validate({"choices": [{"index": 0, "text": str(request.prompt), "logprobs": None}]})


class Lengths(OpenAIEncoderModel):
    """Embeds a text as the number of its characters."""

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: object = None, context: object = None
    ) -> Embedding:
        return Embedding(data=[{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(request.texts)])


class Sums(Model):
    """Adds up the numbers of its first tensor, or of each of the `instances`."""

    def predict(self, payload: Any, headers: object = None) -> Any:
        if not isinstance(payload, InferRequest):
            return {"predictions": [sum(each) for each in payload["instances"]]}
        total = payload.inputs[0].as_numpy().sum(keepdims=True)
        return InferResponse(payload.id, self.name, [InferOutput.from_numpy("sum", total)])


class Broken(Echo):
    """Cannot be loaded."""

    async def load(self) -> None:
        raise RuntimeError("a secret of the model")


async def _exists(file: str) -> None:
    while file and not Path(file).exists():  # noqa: ASYNC240 - a local file, looked at in microseconds
        await asyncio.sleep(0.02)
