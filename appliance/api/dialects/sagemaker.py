"""Amazon SageMaker's contract of containers: one path for all requests, and a health check.

Source: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html; the requests are those of
OpenAI's routes, as in vLLM, and those of Text Embeddings Inference, as in Hugging Face's containers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from litestar import Response, post
from litestar.handlers import BaseRouteHandler

from appliance.api import PROTOCOL, openai
from appliance.api.dialects import tei
from appliance.api.disconnect import AnyRequest
from appliance.api.model_client import ModelClient
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.model import Operation
from appliance.tensors.codec import decode

# What a body with these fields asks for, most specific first; of several, the first that the model supports.
_SHAPES: tuple[tuple[Collection[str], tuple[Operation, ...]], ...] = (
    (("messages",), (Operation.CHAT_COMPLETION, Operation.EMBEDDING)),
    (("query", "documents"), (Operation.RERANK,)),
    (("queries", "documents"), (Operation.SCORE,)),
    (("text_1", "text_2"), (Operation.SCORE,)),
    (("prompt",), (Operation.COMPLETION,)),
    (("input",), (Operation.EMBEDDING, Operation.CLASSIFICATION, Operation.RESPONSE, Operation.POOLING)),
)


class _Body(msgspec.Struct):
    model: str | None = None


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return ``POST /invocations``; ``GET`` and ``POST /ping`` are probes."""

    @post("/invocations", status_code=200, opt={PROTOCOL: "sagemaker"})
    async def invoke(request: AnyRequest) -> Response[Any]:  # Any: bytes, or a stream
        body = await client.read_bytes(request)
        members = await off_loop(len(body), decode, body, dict[str, msgspec.Raw])
        if members.keys() & {"inputs", "texts"}:
            return await tei.answer_any(client, request, body)
        model = (await off_loop(len(body), decode, body, _Body)).model
        _, status = client.find(request, model)
        operation = _operation(members.keys(), status.model.operations)
        return await openai.answer(client, request, operation, body)

    return [invoke]


def _operation(fields: Collection[str], supported: Collection[Operation]) -> Operation:
    """Return the operation that a body with these fields asks a model for."""
    for names, operations in _SHAPES:
        if all(name in fields for name in names):
            return next((each for each in operations if each in supported), operations[0])
    known = "; ".join(" and ".join(names) for names, _ in _SHAPES)
    raise RequestError(f"The body is none of the requests that this route takes; it must have {known}; or inputs")
