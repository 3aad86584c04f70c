"""
A target elsewhere that is away: the adapter says so, stays alive, and is back when the target is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from doubles import config
from faultproxy import Fault, FaultProxy
from upstreams import Upstream, error

from appliance.contract import Call, Operation
from appliance.errors import GatewayError
from appliance.lifecycle import Lifecycle, State
from appliance.models.adapter import AdapterSection

CALL = Call(Operation.CHAT_COMPLETION, b'{"messages": [{"role": "user", "content": "Hi"}]}')


@asynccontextmanager
async def _begun(url: str) -> AsyncGenerator[Lifecycle]:
    protocol = {"kind": "completions", "chat_template": "{{ messages[0].content }}"}
    section = {"name": "chat", "class": "adapter", "target": {"url": url}, "protocol": protocol}
    lifecycle = Lifecycle(config(AdapterSection.model_validate(section)))
    lifecycle.begin()
    try:
        yield lifecycle
    finally:
        await lifecycle.stop()


async def _until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_an_adapter_waits_for_a_target_that_is_not_there_yet(
    upstream: Upstream, fault_proxies: Callable[[int], FaultProxy]
) -> None:
    """
    Unavailable and alive, with the reason; ready by itself once the target answers.
    """
    proxy = fault_proxies(upstream.port)
    proxy.set(Fault("refuse"))
    async with _begun(proxy.url) as lifecycle:
        await _until(lambda: "cannot be reached" in lifecycle.entries[0].reason)

        assert lifecycle.entries[0].state is State.UNAVAILABLE
        assert lifecycle.is_live
        assert lifecycle.entries[0].describe()["upstreams"] == [{"name": f"127.0.0.1:{proxy.port}"}]

        proxy.set(None)
        await _until(lambda: lifecycle.is_ready)


async def test_silence_in_the_middle_of_life_is_noticed(
    upstream: Upstream, fault_proxies: Callable[[int], FaultProxy]
) -> None:
    """
    One request without an answer is an accident, three in a row are not; an answer is the way back.
    """
    proxy = fault_proxies(upstream.port)
    async with _begun(proxy.url) as lifecycle:
        await _until(lambda: lifecycle.is_ready)
        proxy.set(Fault("refuse"))
        for _ in range(3):
            with pytest.raises(GatewayError):
                await lifecycle.entries[0].model.answer(CALL)
        await _until(lambda: not lifecycle.is_ready)
        proxy.set(None)
        await _until(lambda: lifecycle.is_ready)


async def test_a_target_that_refuses_its_first_request_is_told_with_its_words(upstream: Upstream) -> None:
    """
    A wrong key or a wrong name shows in the probe, not in the first client's answer.
    """
    upstream.on("/v1/completions", error(401, "wrong key"))
    async with _begun(upstream.url) as lifecycle:
        await _until(lambda: "wrong key" in lifecycle.entries[0].reason)

        assert lifecycle.entries[0].state is State.UNAVAILABLE
