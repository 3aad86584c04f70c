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

# So seldom that no test sees a second check it did not ask for.
NEVER = 3600


def config(*upstreams: Upstream, **keys: Any) -> ProxyConfig:
    """A proxy called `mine` for some upstreams, without retries and with short patience."""
    timeouts = {"connect_seconds": 2, "first_byte_seconds": 2, "idle_seconds": 1}
    members = [{"url": each.url, "model": "theirs", "timeouts": timeouts} for each in upstreams]
    defaults: dict[str, Any] = {"retry": {"attempts": 0}, "health": {"interval_seconds": NEVER}, "upstreams": members}
    return ProxyConfig.model_validate({"name": "mine", "class": "proxy", **defaults, **keys})


@asynccontextmanager
async def proxied(*upstreams: Upstream, **keys: Any) -> AsyncGenerator[ProxyModel]:
    """The model of such a section, loaded; what was asked of upstreams so far is forgotten."""
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
    """A call with one message."""
    body = {"model": "mine", "messages": [{"role": "user", "content": text}], **fields}
    return ModelRequest(operation, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})


async def read(reply: ModelResponse, chunks: list[bytes] | None = None) -> bytes:
    """The whole body of a reply; what came of one that breaks off is in `chunks`."""
    chunks = [] if chunks is None else chunks
    if isinstance(reply.body, bytes):
        return reply.body
    async for chunk in reply.body:
        chunks.append(chunk)
    return b"".join(chunks)


async def ask(model: ProxyModel, call: ModelRequest | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    reply = await model.handle(call or chat())
    return reply.status, json.loads(await read(reply))
