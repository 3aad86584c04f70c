"""Embeddings, in OpenAI's shape.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from pydantic import TypeAdapter

from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse
from appliance.engines.vllm.errors import vendor_faults
from appliance.engines.vllm.pooling.batch import Encoded, TextBatcher
from appliance.engines.vllm.pooling.encoding import require_json
from appliance.engines.vllm.pooling.usage import PoolingUsage, usage_of
from appliance.engines.vllm.request_decoder import decode
from appliance.engines.vllm.serving import Answer

if TYPE_CHECKING:
    from vllm import PoolingParams
    from vllm.config import ModelConfig
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest


class Embedding(msgspec.Struct, tag_field="object", tag="embedding"):
    """One embedding: its numbers, or their float32 bytes, little-endian, in base64."""

    index: int
    embedding: list[float] | str


class Embeddings(msgspec.Struct, tag_field="object", tag="list"):
    """The answer: an embedding for each input, in their order."""

    id: str
    created: int
    model: str
    data: list[Embedding]
    usage: PoolingUsage


class EmbeddingEndpoint:
    """Embeds texts and token ids; what else vLLM takes, chats for one, goes to its own serving class."""

    def __init__(self, texts: TextBatcher, model: ModelConfig, name: str, others: Answer) -> None:
        from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest

        self._texts = texts
        self._model = model
        self._name = name
        self._others = others
        self._request = TypeAdapter(EmbeddingCompletionRequest)

    async def __call__(self, call: ModelRequest) -> ModelResponse:
        """Answer one call; see `Answer`."""
        if _is_chat(call.body):
            return await self._others(call)
        request: EmbeddingCompletionRequest = await off_loop(len(call.body), decode, self._request, call.body)
        require_json(request.encoding_format)
        if request.embed_dtype != "float32" or request.endianness != "native":
            return await self._others(call)
        pool = self._pooling(request)
        with vendor_faults("input"):
            encoded = await self._texts.encode(request.input, request.build_tok_params(self._model), pool)
        write = _base64 if request.encoding_format == "base64" else _numbers
        answer = Embeddings(
            id=f"embd-{uuid4().hex}",
            created=int(time.time()),
            model=self._name,
            data=[Embedding(index, write(each)) for index, each in enumerate(encoded)],
            usage=usage_of(encoded),
        )
        return ModelResponse(msgspec.json.encode(answer))

    def _pooling(self, request: EmbeddingCompletionRequest) -> PoolingParams:
        params = request.to_pooling_params()
        try:
            with vendor_faults():
                params.verify(self._model)
        except RequestError as error:
            # Of all that is verified, only this comes from the client.
            raise RequestError(str(error), param="dimensions") from error
        return params


class _Shape(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None
    input: Any = None  # Any: looked at, not read


def _is_chat(body: bytes) -> bool:
    """Whether conversations are to be embedded: as `messages`, or as `input`."""
    try:
        shape = msgspec.json.decode(body, type=_Shape)
    except (ValueError, RecursionError):
        return False
    first = shape.input[0] if isinstance(shape.input, list) and shape.input else None
    if isinstance(first, list) and first:
        first = first[0]
    return shape.messages is not None or isinstance(first, dict)


def _numbers(encoded: Encoded) -> list[float]:
    return encoded.values.tolist()  # type: ignore[no-any-return]  # numpy says Any


def _base64(encoded: Encoded) -> str:
    return base64.b64encode(encoded.values.astype("<f4").tobytes()).decode()
