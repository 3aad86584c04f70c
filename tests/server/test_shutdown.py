"""How a process leaves, when it is told to and when its model has failed."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import http2
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from server_process import ServerProcess, free_port, open_stream, wait_until

MODEL = """
import asyncio
from pathlib import Path
from appliance.core.errors import EngineDeadError
from appliance.openai import OpenAIGenerativeModel


class Mortal(OpenAIGenerativeModel):
    def __init__(self, name, grave):
        super().__init__(name)
        self.grave = Path(grave)

    async def healthy(self):
        if self.grave.exists():
            raise EngineDeadError("the engine died: it was told to")
        return True

    async def create_chat_completion(self, request, raw_request=None, context=None):
        yield {"choices": [{"delta": {"role": "assistant", "content": "one"}}]}
        await asyncio.sleep(request.max_tokens or 0)
        yield {"choices": [{"delta": {"content": " end"}, "finish_reason": "stop"}]}
"""

CHAT = "/v1/chat/completions"
BODY = {"model": "one", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def start(
    serve: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ServerProcess]:
    """Starts a model that dies once the file `grave` is there."""
    (tmp_path / "mortal.py").write_text(MODEL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "mortal.yaml"
    engine = f"{{python: 'mortal:Mortal', args: {{grave: {tmp_path / 'grave'}}}}}"
    file.write_text(f"models: [{{name: one, class: generative, engine: {engine}}}]\n")
    return lambda *overrides: serve(*overrides, file=file)


def test_in_the_delay_readiness_is_off_and_calls_are_answered_a_last_time(start: Callable[..., ServerProcess]) -> None:
    """Liveness stays, the probe says why, and each answer closes the connection it came on."""
    server = start("server.drain_delay_seconds=3").wait_until_ready(60)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    closes = []
    for is_leaving in (False, True):
        if is_leaving:
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.get("/readyz")[0] == 503, 10)
        connection.request("POST", CHAT, json.dumps(BODY), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            closes.append((response.status, response.headers["Connection"], b"one end" in response.read()))
    live, body = server.get("/livez")

    assert closes == [(200, None, True), (200, "close", True)]
    assert live == 200
    assert body["models"][0]["state"] == "draining"
    assert "requests are still answered" in body["models"][0]["reason"]
    assert server.process.wait(30) == 0


def test_a_connection_of_http2_is_told_to_go_while_its_call_is_under_way(start: Callable[..., ServerProcess]) -> None:
    """
    Or one whose calls overlap would be kept for as long as it asks; the call ends whole, and who comes is answered.
    """
    server = start("server.drain_delay_seconds=0.5").wait_until_ready(60)
    with http2.ask(server.port, CHAT, {**BODY, "max_tokens": 5}) as connection:
        wait_until(lambda: server.get("/readyz")[1]["models"][0]["running"] == 1, 10)
        server.process.send_signal(signal.SIGTERM)
        kinds, answer = [], b""
        for kind, payload in http2.frames(connection):
            if kind == http2.GOAWAY and kind not in kinds:
                late = server.post(CHAT, BODY)
            kinds.append(kind)
            answer += payload if kind == http2.DATA else b""

    assert http2.GOAWAY in kinds
    assert b"one end" in answer
    assert late[0] == 200
    assert server.process.wait(30) == 0


def test_clients_of_grpc_are_told_to_go_while_another_call_is_under_way(start: Callable[..., ServerProcess]) -> None:
    """They ask elsewhere then, and no longer here, while the call that is left ends whole."""
    port = free_port()
    server = start("server.drain_delay_seconds=0.5", f"server.grpc_port={port}").wait_until_ready(60)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health: Any = HealthStub(channel)
        before = _health(health)
        with open_stream(server.port, CHAT, {**BODY, "stream": True, "max_tokens": 5}) as stream:
            received = stream.recv(4096)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: _health(health) == "UNAVAILABLE", 10)
            running = server.get("/readyz")[1]["models"][0]["running"]
            while piece := stream.recv(65536):
                received += piece

    assert before == "SERVING"
    assert running == 1
    assert b"[DONE]" in received
    assert server.process.wait(30) == 0


def test_somebody_at_a_terminal_does_not_wait(start: Callable[..., ServerProcess]) -> None:
    """Ctrl-C drains at once: nobody else was told to send calls here."""
    server = start("server.drain_delay_seconds=600").wait_until_ready(60)
    server.process.send_signal(signal.SIGINT)

    assert server.process.wait(30) == 0


def test_a_server_whose_upstream_never_was_available_stops_without_the_delay(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """It never was ready, so no load balancer sends it requests."""
    file = tmp_path / "proxy.yaml"
    file.write_text(
        f"models: [{{name: one, class: proxy, upstreams: [{{url: 'http://127.0.0.1:{free_port()}'}}]}}]\n"
        "server: {drain_delay_seconds: 600}\n"
    )
    server = serve(file=file)
    wait_until(lambda: server.get("/startupz")[0] == 200, 60)
    server.process.send_signal(signal.SIGTERM)

    assert server.process.wait(30) == 0


@pytest.mark.parametrize(("on_failure", "ends"), [("exit", True), ("stay", False)])
def test_a_model_that_dies_ends_the_process_where_it_should(
    start: Callable[..., ServerProcess], tmp_path: Path, on_failure: str, ends: bool
) -> None:
    """With the exit code of an engine's fault, after the calls under way; else the process stays and says so."""
    server = start(f"models.one.on_failure={on_failure}").wait_until_ready(60)
    with open_stream(server.port, CHAT, {**BODY, "stream": True, "max_tokens": 2}) as stream:
        received = stream.recv(4096)
        (tmp_path / "grave").touch()
        while piece := stream.recv(65536):
            received += piece
    wait_until(lambda: server.get("/livez")[0] != 200, 10)
    time.sleep(1)

    assert b"[DONE]" in received
    if ends:
        assert server.process.wait(30) == 4
    else:
        assert server.get("/livez")[0] == 503
        assert server.stop() == 0


def test_a_model_that_never_loads_ends_the_process_with_the_code_of_its_fault(
    start: Callable[..., ServerProcess],
) -> None:
    """Also where others would be restarted: what is wrong stays wrong."""
    server = start("models.one.on_failure=exit", "models.one.engine.python=nowhere:Model")

    assert server.process.wait(60) == 4


def _health(stub: Any) -> str:  # Any: generated
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.RpcError as error:
        return error.code().name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
