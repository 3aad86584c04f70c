"""Routes of vLLM's server beside OpenAI's: several chats in one request, the tokenizer, its load, and its version.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html; of the pinned version the files
vllm/entrypoints/openai/chat_completion/batch_serving.py, vllm/entrypoints/serve/tokenize/api_router.py and
vllm/entrypoints/serve/instrumentator/basic.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Response, get, post
from litestar.handlers import BaseRouteHandler

from appliance.api import PROTOCOL
from appliance.api.disconnect import AnyRequest, cancel_on_disconnect
from appliance.api.inner_requests import decode_response, openai_request, response_body
from appliance.api.model_client import ModelClient
from appliance.api.openai import PREFIXES, client_response
from appliance.core.concurrency import gather_limited, off_loop
from appliance.core.distribution import version
from appliance.core.errors import RequestError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.core.openai_types import Json, new_id, now
from appliance.limits.queue import require_within
from appliance.tensors.codec import decode

_OPT = {PROTOCOL: "openai"}

_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


class BatchRequest(msgspec.Struct):
    """A chat completion request with several conversations; all other fields are those of a single one."""

    messages: Annotated[list[Annotated[list[Json], msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    n: int | None = None


class BatchResponse(msgspec.Struct, kw_only=True):
    """A chat completion with one choice for each conversation, in their order."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Json]
    usage: Json


class Version(msgspec.Struct):
    """The version of the appliance."""

    version: str


class Load(msgspec.Struct):
    """Requests that are running or queued, in all workers, for the models that the caller may use."""

    server_load: int


class _Completion(msgspec.Struct):
    choices: Annotated[list[Json], msgspec.Meta(min_length=1)]
    usage: Json = {}


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return the routes."""

    @post([prefix + "/v1/chat/completions/batch" for prefix in PREFIXES], status_code=200, opt=_OPT)
    async def complete_batch(request: AnyRequest) -> Response[bytes]:
        body = await client.read_bytes(request)
        batch = await off_loop(len(body), decode, body, BatchRequest)
        if batch.stream:
            raise RequestError("A batch cannot be streamed; leave stream out", param="stream")
        if batch.n not in {None, 1}:
            raise RequestError("A batch has one choice for each conversation; leave n out", param="n")
        name, status = client.find(request, batch.model)
        require_within(status.config.limits, len(batch.messages), 1, field="messages")
        fields = await off_loop(len(body), decode, body, Json)
        completions = await cancel_on_disconnect(request, _complete_all(client, request, name, batch, fields))
        response = await off_loop(sum(map(len, completions)), _join, completions, batch.model or name)
        return Response(response, media_type="application/json")

    @get("/tokenizer_info", opt=_OPT)
    async def show_tokenizer(request: AnyRequest) -> Response[Any]:  # Any: bytes
        client.manager.authorizer.require_operation(Operation.TOKENIZER_INFO)
        name, status = client.find(request, None)
        if Operation.TOKENIZER_INFO not in status.model.operations:
            raise UnsupportedOperationError(
                f"The model {name!r} does not show its tokenizer; engine.serving.enable_tokenizer_info_endpoint in the "
                "config lets a model in vLLM show it",
                status=404,
                param="model",
            )
        inner = openai_request(name, Operation.TOKENIZER_INFO, {}, dict(request.headers))
        return client_response(request, await cancel_on_disconnect(request, client.manager.handle(name, inner)))

    @get("/version", opt=_OPT)
    async def show_version() -> Version:
        client.manager.authorizer.require_key()
        return Version(version())

    @get("/load", opt=_OPT)
    async def show_load() -> Load:
        names = {status.name for status, _ in client.manager.visible()}
        return Load(sum(each["running"] + each["queued"] for each in client.health().models if each["name"] in names))

    return [complete_batch, show_tokenizer, show_version, show_load]


async def _complete_all(
    client: ModelClient, request: AnyRequest, name: str, batch: BatchRequest, fields: Json
) -> Sequence[bytes]:
    headers = dict(request.headers)

    async def complete(messages: Sequence[Json]) -> bytes:
        inner = openai_request(name, Operation.CHAT_COMPLETION, {**fields, "messages": messages}, headers)
        return await response_body(await client.manager.handle(name, inner))

    return await gather_limited([partial(complete, messages) for messages in batch.messages])


def _join(completions: Sequence[bytes], model: str) -> bytes:
    choices, usage = list[Json](), dict.fromkeys(_COUNTS, 0)
    for index, content in enumerate(completions):
        completion = decode_response(content, _Completion)
        choices.append({**completion.choices[0], "index": index})
        for count in _COUNTS:
            usage[count] += completion.usage.get(count) or 0
    return msgspec.json.encode(
        BatchResponse(id=new_id("chatcmpl"), created=now(), model=model, choices=choices, usage=usage)
    )
