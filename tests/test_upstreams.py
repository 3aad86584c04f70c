"""The scripted upstream says what it is told to, byte for byte, and remembers who asked."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
import openai
import pytest
from server_process import wait_until
from upstream_quirks import STREAMS
from upstreams import FOR_EVER, Answer, Upstream, error, stream


async def _post(upstream: Upstream, body: object) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{upstream.url}/chat/completions", json=body, headers={"X-Twice": "1"}) as response,
    ):
        return response.status, await response.read()


def test_a_real_client_is_pleased(upstream: Upstream) -> None:
    """Left alone it is a model that says back what it hears, whole and streamed."""
    with openai.OpenAI(base_url=upstream.url, api_key="k", max_retries=0) as client:
        whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "grüß dich"}])
        chunks = list(
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "grüß dich"}], stream=True)
        )

    assert whole.choices[0].message.content == "You said: grüß dich"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: grüß dich"
    assert upstream.calls[0].header("authorization") == "Bearer k"
    assert upstream.calls[0].json()["messages"][0]["content"] == "grüß dich"
    wait_until(lambda: upstream.calls[1].is_answered, 10)


async def test_it_reacts_as_scripted_one_after_the_other(upstream: Upstream) -> None:
    """The last reaction stays; without any it behaves again."""
    upstream.on("/v1/chat/completions", error(500), Answer(201, b"{}"))
    answers = [await _post(upstream, {}) for _ in range(3)]
    upstream.on("/v1/chat/completions")

    assert [status for status, _ in answers] == [500, 201, 201]
    assert (await _post(upstream, {"messages": []}))[0] == 200


@pytest.mark.parametrize("odd", STREAMS)
async def test_oddities_are_one_answer_in_other_bytes(upstream: Upstream, odd: str) -> None:
    """Each odd stream begins as the good one does, once comments, names and packing are put aside."""
    upstream.on("/v1/chat/completions", STREAMS[odd])

    _, received = await _post(upstream, {"stream": True, "messages": [{"role": "user", "content": "é"}]})

    assert b'"role": "assistant"' in received
    assert odd == "an error in the middle" or "é".encode() in received


async def test_it_notices_who_leaves(upstream: Upstream) -> None:
    """A client that goes away in the middle is remembered as gone."""
    upstream.on("/v1/chat/completions", stream(b"data: 1\n\n", FOR_EVER))
    async with aiohttp.ClientSession() as session:
        response = await session.post(f"{upstream.url}/chat/completions", json={})
        assert await response.content.readany() == b"data: 1\n\n"
        response.close()

    wait_until(lambda: upstream.calls[0].has_left, 10)
    assert upstream.calls[0].sent == 9


async def test_there_may_be_several(upstreams: Callable[[], Upstream]) -> None:
    """Each has a port and a memory of its own."""
    one, two = upstreams(), upstreams()
    await _post(two, {"messages": []})

    assert one.port != two.port
    assert (len(one.calls), len(two.calls)) == (0, 1)
