"""Targets of adapters that answer without end, or too deeply, and content in parts for templates that take text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from itertools import repeat
from typing import Any

import msgspec
import pytest
from upstreams import SSE, Answer, Upstream

from appliance.adapters.chat_request import template_messages, text_messages
from appliance.adapters.service_client import ServiceClient
from appliance.config.upstreams import UpstreamConfig
from appliance.core.errors import GatewayError, RequestError
from appliance.proxy.client import UpstreamClient

LIMIT = 1024 * 1024
ENDLESS = repeat(b"x" * 65536)


@pytest.fixture
async def service(upstream: Upstream) -> AsyncGenerator[ServiceClient]:
    """The way to the scripted server, of whose answers a mebibyte is held."""
    service = ServiceClient(UpstreamClient(UpstreamConfig(url=upstream.origin, max_response_bytes=LIMIT)))
    yield service
    await service.close()


async def test_an_endless_response_has_a_limit(service: ServiceClient, upstream: Upstream) -> None:
    """Whether it is good or an error."""
    for status in (200, 500):
        upstream.on("/a", Answer(status, ENDLESS))
        with pytest.raises(GatewayError, match="too long"):
            await service.post(service.url("/a"), b"{}", {})


@pytest.mark.parametrize("media_type", [SSE, "application/x-ndjson"])
@pytest.mark.parametrize("piece", [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"])
async def test_an_endless_event_has_a_limit(
    service: ServiceClient, upstream: Upstream, media_type: str, piece: bytes
) -> None:
    """In one line, or in many lines of one event."""
    upstream.on("/a", Answer(body=repeat(piece), media_type=media_type))
    events = await service.stream(service.url("/a"), b"{}", {}, has_lines=True)

    with pytest.raises(GatewayError):
        await anext(events)


@pytest.mark.parametrize("status", [200, 400])
async def test_a_deeply_nested_response_is_an_error(service: ServiceClient, upstream: Upstream, status: int) -> None:
    """Neither the stack nor the server ends over it."""
    nested = b"[" * 100_000 + b"]" * 100_000
    upstream.on("/a", Answer(status, nested))
    with pytest.raises(RequestError):
        await service.post(service.url("/a"), b"{}", {})
    upstream.on("/a", Answer(body=[nested + b"\n"], media_type="application/x-ndjson"))
    with pytest.raises(GatewayError):
        await anext(await service.stream(service.url("/a"), b"{}", {}, has_lines=True))


async def test_a_large_response_is_read(service: ServiceClient, upstream: Upstream) -> None:
    """In a thread, so that others are served meanwhile."""
    numbers = list(range(100_000))
    upstream.on("/a", Answer(body=msgspec.json.encode(numbers)))

    assert await service.post(service.url("/a"), b"{}", {}) == numbers


def test_content_parts_are_joined_for_templates() -> None:
    """Joined as in chat templates; nothing else of a message is changed."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    plain: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}

    assert text_messages([{"role": "user", "content": parts, "name": "n"}, plain]) == [
        {"role": "user", "content": "a\nb", "name": "n"},
        plain,
    ]


def test_a_content_part_of_another_type_is_refused() -> None:
    """With the place it stands in."""
    image = {"type": "image_url", "image_url": {"url": "data:"}}

    with pytest.raises(RequestError, match="image_url") as raised:
        text_messages([{"role": "user", "content": [image]}])

    assert (raised.value.status, raised.value.param) == (400, "messages[0].content")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (5, "must be a text, or a list of parts"),
        ({"text": "a"}, "must be a text, or a list of parts"),
        (True, "must be a text, or a list of parts"),
        (["a"], "has a part that is not a mapping with a type"),
        ([{"type": 5}], "has a part that is not a mapping with a type"),
        ([{"type": "text"}], "has a part of type 'text' whose text is not a text"),
        ([{"type": "refusal", "text": "a"}], "has a part of type 'refusal' whose refusal is not a text"),
    ],
)
def test_invalid_content_is_refused(content: object, message: str) -> None:
    """Alike for chat templates and for the templates of services."""
    messages = [{"role": "user", "content": content}]
    for read in (text_messages, partial(template_messages, knows_developer=True)):
        with pytest.raises(RequestError, match=message) as raised:
            read(messages)

        assert (raised.value.status, raised.value.param) == (400, "messages[0].content")
