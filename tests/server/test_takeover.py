"""One instance takes over from another while clients ask without a pause: not one request fails."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load_balancer import LoadBalancer
from server_process import ServerProcess, free_port, wait_until
from traffic import Traffic
from upstreams import Upstream

MODEL = """
import asyncio
from appliance.openai import OpenAIGenerativeModel


class Counting(OpenAIGenerativeModel):
    def __init__(self, name, instance):
        super().__init__(name)
        self.instance = instance

    async def create_chat_completion(self, request, raw_request=None, context=None):
        yield {"choices": [{"delta": {"role": "assistant", "content": self.instance}}]}
        for number in range(20):
            await asyncio.sleep(0.01)
            yield {"choices": [{"delta": {"content": f" {number}"}}]}
        yield {"choices": [{"delta": {"content": " end"}, "finish_reason": "stop"}]}
"""

DELAY = "server.drain_delay_seconds=2"


@pytest.fixture
def instance(
    serve: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, int], ServerProcess]:
    """Starts an instance of the same model on a port; it answers with its name first."""
    (tmp_path / "counting.py").write_text(MODEL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(name: str, port: int) -> ServerProcess:
        file = tmp_path / f"{name}.yaml"
        engine = f"{{python: 'counting:Counting', args: {{instance: {name}}}}}"
        file.write_text(f"models: [{{name: one, class: generative, engine: {engine}}}]\n")
        return _at_port(serve(f"server.port={port}", DELAY, file=file), port)

    return start


@pytest.fixture
def ports() -> list[int]:
    """A port for each generation."""
    return [free_port() for _ in range(3)]


@pytest.fixture
def balancer(ports: list[int]) -> Iterator[LoadBalancer]:
    """Before all of them."""
    with LoadBalancer(ports) as balancer:
        yield balancer


def test_two_generations_are_replaced_and_no_request_fails(
    instance: Callable[[str, int], ServerProcess], ports: list[int], balancer: LoadBalancer
) -> None:
    """Behind something that follows readiness and repairs nothing, every kind of client gets every answer whole."""
    before = instance("first", ports[0]).wait_until_ready(60)
    wait_until(lambda: balancer.ready == [ports[0]], 10)
    with Traffic(balancer.port, "end") as traffic:
        traffic.wait_for_more(5)
        for name, port in (("second", ports[1]), ("third", ports[2])):
            after = instance(name, port).wait_until_ready(60)
            wait_until(lambda port=port: port in balancer.ready, 10)  # type: ignore[misc]  # mypy: lambda default
            before.process.send_signal(signal.SIGTERM)
            traffic.wait_for_more(10)
            assert before.process.wait(60) == 0, before.log_tail()
            traffic.wait_for_more(5)
            before = after

    assert traffic.failures == []
    assert set(traffic.seen) == {"first", "second", "third"}
    assert min(traffic.answers.values()) >= 35


def test_workers_are_replaced_and_no_request_fails(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path, ports: list[int], balancer: LoadBalancer
) -> None:
    """Several processes on one port leave together."""
    file = tmp_path / "proxy.yaml"
    models = f"models: [{{name: one, class: proxy, upstreams: [{{url: {upstream.url}}}], retry: {{attempts: 0}}}}]"
    file.write_text(f"{models}\nserver: {{workers: 2}}\n")
    before, after = (_at_port(serve(f"server.port={port}", DELAY, file=file), port) for port in ports[:2])
    wait_until(lambda: balancer.ready == ports[:2], 60)
    with Traffic(balancer.port, "hi") as traffic:
        traffic.wait_for_more(20)
        before.process.send_signal(signal.SIGTERM)
        traffic.wait_for_more(20)
        code = before.process.wait(60)
        traffic.wait_for_more(20)

    assert code == 0
    assert traffic.failures == []
    assert after.stop() == 0


def test_an_appliance_before_others_follows_their_readiness(
    instance: Callable[[str, int], ServerProcess], serve: Callable[..., ServerProcess], ports: list[int], tmp_path: Path
) -> None:
    """It never has to ask twice, which it may not here: no answer was refused, and no connection broke."""
    before, after = instance("first", ports[0]), instance("second", ports[1])
    upstreams = ", ".join(f"{{url: 'http://127.0.0.1:{port}'}}" for port in ports[:2])
    health = "{path: /readyz, interval_seconds: 0.2, failures: 1}"
    file = tmp_path / "front.yaml"
    model = f"{{name: one, class: proxy, upstreams: [{upstreams}], retry: {{attempts: 0}}, health: {health}}}"
    file.write_text(f"models: [{model}]\n")
    for server in (before, after):
        server.wait_until_ready(60)
    front = serve(file=file).wait_until_ready(60)
    with Traffic(front.port, "end") as traffic:
        wait_until(lambda: len(traffic.seen) == 2, 30)
        before.process.send_signal(signal.SIGTERM)
        traffic.wait_for_more(10)
        code = before.process.wait(60)
        traffic.wait_for_more(5)

    assert code == 0
    assert traffic.failures == []
    assert set(traffic.seen) == {"first", "second"}
    assert front.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_language_model_is_replaced_and_no_request_fails(
    serve: Callable[..., ServerProcess],
    instance: Callable[[str, int], ServerProcess],
    ports: list[int],
    balancer: LoadBalancer,
) -> None:
    """The same with vLLM's engine behind the one that goes; two of them on two cores would only wait for each other."""
    names = "models.smollm2.aliases=[one]"
    before = _at_port(serve(f"server.port={ports[0]}", DELAY, names), ports[0]).wait_until_ready()
    after = instance("second", ports[1]).wait_until_ready()
    wait_until(lambda: balancer.ready == ports[:2], 60)
    with Traffic(balancer.port, "", ("openai", "openai stream", "kept")) as traffic:
        traffic.wait_for_more(3)
        before.process.send_signal(signal.SIGTERM)
        traffic.wait_for_more(3)
        code = before.process.wait(60)
        traffic.wait_for_more(3)

    assert code == 0
    assert traffic.failures == []
    assert after.stop() == 0


def _at_port(server: ServerProcess, port: int) -> ServerProcess:
    server.port, server.url = port, f"http://127.0.0.1:{port}"
    return server
