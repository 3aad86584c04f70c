"""Embeddings, in OpenAI's format.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import TypeAdapter

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse
from appliance.core.openai_types import EmbeddingData, Embeddings, encode_vector, new_id, now
from appliance.engines.vllm.pooling.batch import Encoded, TextBatcher, usage_of
from appliance.engines.vllm.request_decoder import decode_request
from appliance.engines.vllm.serving import Handler

if TYPE_CHECKING:
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest


class EmbeddingEndpoint:
    """Embeds texts and token ids; anything else that vLLM takes, such as chats, goes to `fallback`."""

    def __init__(self, batcher: TextBatcher, name: str, fallback: Handler) -> None:
        from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest

        self._batcher = batcher
        self._name = name
        self._fallback = fallback
        self._request_type = TypeAdapter(EmbeddingCompletionRequest)

    async def __call__(self, request: ModelRequest) -> ModelResponse:
        """Handle one request; see `Handler`."""
        if _has_chats(request.body):
            return await self._fallback(request)
        decoded: EmbeddingCompletionRequest = await decode_request(self._request_type, request)
        _require_json(decoded.encoding_format)
        if decoded.embed_dtype != "float32" or decoded.endianness != "native":
            return await self._fallback(request)
        outputs = await self._batcher.encode(decoded, decoded.to_pooling_params())
        to_json = _base64 if decoded.encoding_format == "base64" else _numbers
        response = Embeddings(
            id=new_id("embd"),
            created=now(),
            model=self._name,
            data=[EmbeddingData(index=index, embedding=to_json(output)) for index, output in enumerate(outputs)],
            usage=usage_of(outputs),
        )
        return ModelResponse(msgspec.json.encode(response))


@dataclass(frozen=True, slots=True)
class JsonOnly:
    """Refuses the formats of a handler that are no JSON."""

    handler: Handler

    async def __call__(self, request: ModelRequest) -> ModelResponse:
        """Handle one request; see `Handler`."""
        try:
            encoding_format = msgspec.json.decode(request.body, type=_Format).encoding_format
        except (ValueError, RecursionError) as error:
            raise RequestError(f"The body is not a request: {error}") from error
        _require_json(encoding_format)
        return await self.handler(request)


class _Format(msgspec.Struct):
    encoding_format: str = "float"


class _Inputs(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None
    input: Any = None  # Any: looked at, not read


def _require_json(encoding_format: str) -> None:
    """Raise RequestError for vLLM's responses in plain bytes, whose shape is only in headers of its own server."""
    if encoding_format not in ("float", "base64"):
        raise RequestError(f"encoding_format is {encoding_format!r}; must be float or base64", param="encoding_format")


def _has_chats(body: bytes) -> bool:
    """Whether chats are to be embedded: as `messages`, or as `input`."""
    try:
        inputs = msgspec.json.decode(body, type=_Inputs)
    except (ValueError, RecursionError):
        return False
    first = inputs.input[0] if isinstance(inputs.input, list) and inputs.input else None
    if isinstance(first, list) and first:
        first = first[0]
    return inputs.messages is not None or isinstance(first, dict)


def _numbers(output: Encoded) -> list[float]:
    return output.values.tolist()  # type: ignore[no-any-return]  # numpy says Any


def _base64(output: Encoded) -> str:
    return encode_vector(output.values.astype("<f4").tobytes())
