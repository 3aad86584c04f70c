"""The usage of streams: requested for clients that did not, and charged to their keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from proxy.proxy_model import chat, proxied, read
from server_process import ServerProcess, wait_until
from upstreams import FOR_EVER, SSE, Answer, Upstream, event, stream

from appliance.core.model import ModelRequest, Operation

CHAT = "/v1/chat/completions"
KEYS = {name: f"sk-{name}-0123456789abcdef" for name in ("asks", "silent", "leaves", "messages")}
LIMIT = 6000

CONFIG = """
models:
- name: ours
  class: proxy
  upstreams: [{{url: {url}, model: theirs}}]
  health: {{interval_seconds: 3600}}
server:
  metrics: open
  api_keys:
{keys}
"""


def _streamed(**fields: Any) -> ModelRequest:
    return chat("one two three", stream=True, **fields)


async def test_usage_is_requested_and_removed(upstream: Upstream) -> None:
    """The client gets the same bytes as without; the accounting gets the usage."""
    told: list[bytes] = []
    async with proxied(upstream) as model:
        plain = await read(await model.handle(_streamed()))
        counted = await read(await model.handle(replace(_streamed(), on_usage=told.append)))

    assert counted == plain
    assert b"usage" not in counted
    assert [json.loads(line[5:])["usage"]["completion_tokens"] for line in told] == [5]
    asked = [each.json().get("stream_options") for each in upstream.calls]
    assert asked == [None, {"include_usage": True}]


async def test_null_usage_is_removed(upstream: Upstream) -> None:
    """Every chunk has it once usage is requested; usage that an upstream sends unrequested stays."""
    null = {"choices": [{"index": 0, "delta": {"content": "a"}}], "model": "theirs", "usage": None}
    last = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    beside = {"choices": [{"index": 0, "delta": {}}], "usage": {"completion_tokens": 1}}
    upstream.on(CHAT, stream(event(null), b": ping\n\nid: 1\n" + event(last), event(beside), event("[DONE]")))
    told: list[bytes] = []
    async with proxied(upstream) as model:
        whole = await read(await model.handle(replace(_streamed(), on_usage=told.append)))

    first = {"choices": null["choices"], "model": "mine"}
    assert whole == event(first) + b": ping\n\nid: 1\n\n" + event(beside) + event("[DONE]")
    assert told == [event(last)[:-1]]


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "x": 1}])
async def test_a_client_that_requests_usage_gets_it(upstream: Upstream, options: dict[str, Any]) -> None:
    """As it requested it."""
    async with proxied(upstream) as model:
        whole = await read(await model.handle(replace(_streamed(stream_options=options), on_usage=print)))

    assert b'"completion_tokens": 5' in whole
    assert upstream.calls[0].json()["stream_options"] == options


async def test_other_stream_options_are_forwarded(upstream: Upstream) -> None:
    """Invalid options are reported by the upstream; requests without streaming get none."""
    async with proxied(upstream) as model:
        for fields in (
            {"stream": True, "stream_options": {"include_usage": False, "x": 1}},
            {"stream": True, "stream_options": "x"},
            {"stream": False},
        ):
            await read(await model.handle(replace(chat(**fields), on_usage=print)))

    sent = [each.json().get("stream_options") for each in upstream.calls]
    assert sent == [{"include_usage": True, "x": 1}, "x", None]


async def test_usage_is_not_requested_where_the_config_drops_it(upstream: Upstream) -> None:
    """Nor in protocols without the option."""
    async with proxied(upstream, request={"drop": ["stream_options"]}) as model:
        await read(await model.handle(replace(_streamed(), on_usage=print)))
    async with proxied(upstream) as model:
        upstream.asked.clear()
        call = replace(_streamed(), operation=Operation.MESSAGE, on_usage=print)
        await read(await model.handle(call))

    assert "stream_options" not in upstream.calls[0].json()


@pytest.fixture(scope="module")
def proxy(_upstreams: tuple[Upstream, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A proxy whose keys have a rate limit each."""
    folder: Path = tmp_path_factory.mktemp("usage")
    entry = "  - {{name: {}, value: {}, limits: {{tokens_per_minute: {}}}}}"
    keys = "\n".join(entry.format(name, value, LIMIT) for name, value in KEYS.items())
    (folder / "proxy.yaml").write_text(CONFIG.format(url=_upstreams[0].url, keys=keys))
    served = ServerProcess(folder / "proxy.yaml", folder / "log").wait_until_ready(30)
    yield served
    assert served.stop() == 0, served.log_tail()


def _spend(proxy: ServerProcess, key: str, path: str = CHAT) -> dict[str, Any]:
    """Read one stream to its end, and return its log event."""
    headers = {"Authorization": f"Bearer {KEYS[key]}", "X-Request-Id": f"{key}-1"}
    body = {"model": "ours", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    response = httpx.post(f"{proxy.url}{path}", json=body, headers=headers)
    assert response.status_code == 200
    return proxy.request_ended(f"{key}-1")


def _is_spent(proxy: ServerProcess, key: str) -> bool:
    """Return whether the key exceeds its limit."""
    headers = {"Authorization": f"Bearer {KEYS[key]}"}
    body = {"model": "ours", "messages": [{"role": "user", "content": "hi"}]}
    return httpx.post(f"{proxy.url}{CHAT}", json=body, headers=headers).status_code == 429


def test_an_unrequested_usage_is_charged_to_the_key(proxy: ServerProcess, upstream: Upstream) -> None:
    """In the log and in its rate limit, as the upstream counts it."""
    last = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 2 * LIMIT}}
    upstream.on(CHAT, stream(event({"choices": [{"delta": {"content": "a"}}]}), event(last), event("[DONE]")))

    ended = _spend(proxy, "asks")

    assert (ended["prompt_tokens"], ended["output_tokens"]) == (10, 2 * LIMIT)
    assert _is_spent(proxy, "asks")
    assert f'appliance_tokens_total{{direction="output",model="ours"}} {float(2 * LIMIT)}' in _metrics(proxy)


def _metrics(proxy: ServerProcess) -> str:
    return httpx.get(f"{proxy.url}/metrics").text


def test_tokens_are_counted_by_events_without_usage(proxy: ServerProcess, upstream: Upstream) -> None:
    """An event with text is about a token."""
    piece = event({"choices": [{"delta": {"content": "a"}}]})
    upstream.on(CHAT, Answer(body=[piece * 1000] * (2 * LIMIT // 1000), media_type=SSE))

    ended = _spend(proxy, "silent")

    assert ended["output_tokens"] == 2 * LIMIT
    assert _is_spent(proxy, "silent")


def test_a_client_that_leaves_is_charged_for_the_tokens_so_far(proxy: ServerProcess, upstream: Upstream) -> None:
    """The usage, which comes last, never came."""
    piece = event({"choices": [{"delta": {"content": "a"}}]})
    upstream.on(CHAT, Answer(body=[piece * (2 * LIMIT), FOR_EVER], media_type=SSE))
    headers = {"Authorization": f"Bearer {KEYS['leaves']}", "X-Request-Id": "leaves-1"}
    body = {"model": "ours", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with httpx.stream("POST", f"{proxy.url}{CHAT}", json=body, headers=headers) as response:
        got = 0
        for chunk in response.iter_raw():
            got += len(chunk)
            if got >= len(piece) * 2 * LIMIT:
                break

    ended = proxy.request_ended("leaves-1")

    assert (ended["status"], ended["output_tokens"]) == (499, 2 * LIMIT)
    wait_until(lambda: _is_spent(proxy, "leaves"), 10)


def test_streams_of_messages_have_their_usage(proxy: ServerProcess, upstream: Upstream) -> None:
    """So have those of responses, without an option."""
    assert upstream.asked == []

    ended = _spend(proxy, "messages", "/v1/messages")

    assert (ended["prompt_tokens"], ended["output_tokens"]) == (3, 4)
