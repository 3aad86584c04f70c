"""A target elsewhere that is away: the adapter says so, stays alive, and is back when the target is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from auth_doubles import MODEL_KEY, AppClient, bearer_header
from doubles import config
from faultproxy import Fault, FaultProxy
from upstreams import Upstream, error

from appliance.config.models import AdapterConfig
from appliance.config.server import KeyConfig, ServerConfig
from appliance.core.errors import GatewayError
from appliance.core.model import ModelRequest, Operation
from appliance.models.manager import ModelManager
from appliance.models.state import State

PROBES = ("/livez", "/readyz", "/health", "/ping", "/startupz")

CALL = ModelRequest(Operation.CHAT_COMPLETION, b'{"messages": [{"role": "user", "content": "Hi"}]}')


def _config(url: str, template: str = "{{ messages[0].content }}") -> AdapterConfig:
    protocol = {"kind": "completions", "chat_template": template}
    return AdapterConfig.model_validate(
        {"name": "chat", "class": "adapter", "target": {"url": url}, "protocol": protocol}
    )


@asynccontextmanager
async def _started(url: str, *template: str) -> AsyncGenerator[ModelManager]:
    manager = ModelManager(config(_config(url, *template)))
    manager.start()
    try:
        yield manager
    finally:
        await manager.stop()


async def _until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_an_adapter_waits_for_its_target(upstream: Upstream, fault_proxies: Callable[[int], FaultProxy]) -> None:
    """Unavailable and alive, with the reason; ready by itself once the target answers."""
    proxy = fault_proxies(upstream.port)
    proxy.set(Fault("refuse"))
    async with _started(proxy.url) as manager:
        await _until(lambda: "cannot be reached" in manager.statuses[0].reason)

        assert manager.statuses[0].state is State.UNAVAILABLE
        assert manager.health().is_live
        assert manager.statuses[0].describe()["upstreams"] == [{"name": f"127.0.0.1:{proxy.port}"}]

        proxy.set(None)
        await _until(lambda: manager.is_ready)


async def test_a_target_that_stops_answering_is_unavailable(
    upstream: Upstream, fault_proxies: Callable[[int], FaultProxy]
) -> None:
    """One request without an answer is an accident, three in a row are not; an answer is the way back."""
    proxy = fault_proxies(upstream.port)
    async with _started(proxy.url) as manager:
        await _until(lambda: manager.is_ready)
        proxy.set(Fault("refuse"))
        for _ in range(3):
            with pytest.raises(GatewayError):
                await manager.statuses[0].model.handle(CALL)
        await _until(lambda: not manager.is_ready)
        proxy.set(None)
        await _until(lambda: manager.is_ready)


async def test_a_failing_template_is_not_called_a_refusal(upstream: Upstream) -> None:
    """The target was never asked."""
    upstream.asked.clear()
    async with _started(upstream.url, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}") as manager:
        await _until(lambda: "calls itself too often" in manager.statuses[0].reason)

        assert "the first request cannot be made" in manager.statuses[0].reason
        assert not upstream.asked


async def test_the_refusal_of_the_warmup_request_is_the_reason(upstream: Upstream) -> None:
    """A wrong key or a wrong name shows in the probe, not in the first client's answer."""
    upstream.on("/v1/completions", error(401, "wrong key"))
    async with _started(upstream.url) as manager:
        await _until(lambda: "wrong key" in manager.statuses[0].reason)

        assert manager.statuses[0].state is State.UNAVAILABLE


@pytest.mark.parametrize("has_keys", [False, True])
async def test_only_operators_see_the_address_of_the_target(
    has_keys: bool, upstream: Upstream, fault_proxies: Callable[[int], FaultProxy]
) -> None:
    """Probes from elsewhere, listings and calls say that the target is away, without its address or its words."""
    proxy = fault_proxies(upstream.port)
    proxy.set(Fault("refuse"))
    keys = (KeyConfig(name="only", value=MODEL_KEY, models=("chat",)),) if has_keys else None
    headers = bearer_header(MODEL_KEY) if has_keys else {}
    async with AppClient(config(_config(proxy.url), server=ServerConfig(api_keys=keys))) as client:
        client.manager.start()
        entry = client.manager.statuses[0]
        await _until(lambda: "cannot be reached" in entry.reason)
        probes = [await client.get(path, headers=headers) for path in PROBES]
        strangers = [await client.get(path, headers={"Host": "evil.example"}) for path in PROBES]
        index = await client.post("/v2/repository/index", headers=headers)
        asked = await client.post("/v1/chat/completions", json={"model": "chat", "messages": []}, headers=headers)
        await client.manager.stop()

    assert [each.status_code for each in probes] == [each.status_code for each in strangers] == [200, *3 * [503], 200]
    assert (index.status_code, asked.status_code) == (200, 503)
    for each in (*probes, *strangers, index, asked):
        assert str(proxy.port) not in each.text
        assert "refused" not in each.text
    why = "its target does not answer the first request; see the log"
    assert why in index.text
    assert why in asked.text
    assert probes[1].json()["models"][0] | {"reason": why, "upstreams": [{}]} == probes[1].json()["models"][0]
