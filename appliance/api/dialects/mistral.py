"""Mistral's fill-in-the-middle route, which editors use: a completion with a suffix, answered as a chat completion.

Source: https://docs.mistral.ai/api, "Fim Completion".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from litestar import Response, post
from litestar.handlers import BaseRouteHandler

from appliance.api import PROTOCOL
from appliance.api.disconnect import UNBUFFERED, AnyRequest, StreamingResponse
from appliance.api.error_responses import with_error_event
from appliance.api.inner_requests import convert_event
from appliance.api.model_client import ModelClient
from appliance.api.openai import PREFIXES
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.model import Operation
from appliance.core.openai_types import Completion, Json
from appliance.tensors.codec import decode


class FimRequest(msgspec.Struct):
    """A request for the text between a prompt and a suffix; all other fields are those of a completion."""

    prompt: str
    suffix: str | None = None
    model: str | None = None
    stream: bool | None = None
    random_seed: int | None = None


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return the route."""

    @post([prefix + "/v1/fim/completions" for prefix in PREFIXES], status_code=200, opt={PROTOCOL: "openai"})
    async def fill_in_middle(request: AnyRequest) -> Response[Any]:  # Any: bytes, or a stream
        body = await client.read_bytes(request)
        given = await off_loop(len(body), decode, body, FimRequest)
        name, _ = client.find(request, given.model)
        fields = await off_loop(len(body), decode, body, Json)
        fields = {key: value for key, value in fields.items() if key != "random_seed"} | {"suffix": given.suffix or ""}
        if given.random_seed is not None:
            fields["seed"] = given.random_seed
        if not given.stream:
            return await client.answer(request, name, Operation.COMPLETION, fields, Completion, _whole)
        fields["stream_options"] = {"include_usage": True}
        chunks, headers = await client.stream(request, name, Operation.COMPLETION, fields)
        events = with_error_event(request, _events(chunks))
        return StreamingResponse(events, media_type=sse.MEDIA_TYPE, headers={**UNBUFFERED, **headers})

    return [fill_in_middle]


def _whole(completion: Completion) -> Json:
    return _chat(completion, "message", "chat.completion")


async def _events(chunks: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:  # Any: JSON values
    """Yield the stream; its last chunk has the usage, since clients read the first choice of every chunk."""
    last: Completion | None = None
    async with aclosing(chunks):
        async for value in chunks:
            chunk = convert_event(value, Completion)
            if last is not None:
                last.usage = chunk.usage
            elif any(choice.finish_reason for choice in chunk.choices):
                last = chunk
            elif chunk.choices:
                yield sse.json_event(_chat(chunk, "delta", "chat.completion.chunk"))
    if last is not None:
        yield sse.json_event(_chat(last, "delta", "chat.completion.chunk"))
    yield sse.DONE_EVENT


def _chat(completion: Completion, part: str, kind: str) -> Json:
    """Return the chat completion, or the chunk of one, with the text of a completion."""
    choices = [
        {
            "index": choice.index,
            part: {"role": "assistant", "content": choice.text},
            "finish_reason": choice.finish_reason,
        }
        for choice in completion.choices
    ]
    return {**msgspec.to_builtins(completion), "object": kind, "choices": choices}
