"""A proxy in the event loop of the test."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from upstreams import Upstream

from appliance.config.models import ProxyConfig
from appliance.core.model import ModelRequest, ModelResponse, Operation, Peers
from appliance.models.factory import ModelFactory
from appliance.models.proxy import ProxyModel

CHAT = Operation.CHAT_COMPLETION

# So rare that no test gets a second health check.
NEVER = 3600


def config(*upstreams: Upstream, **keys: Any) -> ProxyConfig:
    """Return the config of a proxy called `mine` for some upstreams, without retries and with short timeouts."""
    timeouts = {"connect_seconds": 2, "first_byte_seconds": 2, "idle_seconds": 1}
    members = [{"url": each.url, "model": "theirs", "timeouts": timeouts} for each in upstreams]
    defaults: dict[str, Any] = {"retry": {"attempts": 0}, "health": {"interval_seconds": NEVER}, "upstreams": members}
    return ProxyConfig.model_validate({"name": "mine", "class": "proxy", **defaults, **keys})


@asynccontextmanager
async def proxied(*upstreams: Upstream, **keys: Any) -> AsyncGenerator[ProxyModel]:
    """Yield the loaded model of such a config; requests to the upstreams before that are forgotten."""
    model = cast("ProxyModel", ModelFactory().create(config(*upstreams, **keys), cast("Peers", None)))
    await model.load({})
    for upstream in upstreams:
        upstream.asked.clear()
    try:
        yield model
    finally:
        await model.close()


def chat(
    text: str = "hi", operation: Operation = CHAT, headers: dict[str, str] | None = None, **fields: Any
) -> ModelRequest:
    """Return a request with one message."""
    body = {"model": "mine", "messages": [{"role": "user", "content": text}], **fields}
    return ModelRequest(operation, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})


async def read(reply: ModelResponse, chunks: list[bytes] | None = None) -> bytes:
    """Return the whole body of a response; if it is truncated, `chunks` has the bytes so far."""
    chunks = [] if chunks is None else chunks
    if isinstance(reply.body, bytes):
        return reply.body
    async for chunk in reply.body:
        chunks.append(chunk)
    return b"".join(chunks)


async def ask(model: ProxyModel, call: ModelRequest | None = None) -> tuple[int, Any]:
    """Return status and JSON of a response."""
    reply = await model.handle(call or chat())
    return reply.status, json.loads(await read(reply))
