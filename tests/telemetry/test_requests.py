"""What is counted and logged of requests."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from proxy_process import CHAT_PATH, CHAT_REQUEST, ProxyProcess, write_config
from server_process import open_stream, wait_until
from upstreams import FOR_EVER, SSE, Answer, Piece, Upstream, error, event, stream

pytestmark = pytest.mark.contract

ASKED = {"protocol": "openai", "operation": "chat_completion", "model": "talk"}


def test_requests_of_all_workers_count_by_the_class_of_their_status(plain: Upstream, tmp_path: Path) -> None:
    """One scrape of any worker has the requests of both, exactly."""
    server = ProxyProcess(
        write_config(tmp_path, plain, {"server": {"workers": 2}}), tmp_path / "server.log"
    ).wait_until_ready(60)

    for number in range(12):
        plain.on(CHAT_PATH, *[error(400)] if number % 3 == 0 else [])
        # On a connection of its own, so that it may meet either worker.
        server.post(CHAT_PATH, CHAT_REQUEST)

    good, bad = {**ASKED, "code": "2xx"}, {**ASKED, "code": "4xx"}
    # What a worker hears of the other one may be a second old.
    wait_until(lambda: server.metric("appliance_requests_total", ASKED) == 12, 10)
    assert server.metric("appliance_requests_total", good) == 8
    assert server.metric("appliance_requests_total", bad) == 4
    assert server.metric("appliance_request_seconds_count", ASKED) == 12
    assert server.stop() == 0


def test_a_name_that_a_client_made_up_is_no_label(proxy_server: ProxyProcess, plain: Upstream) -> None:
    """Nobody can fill the memory of whoever scrapes us, and an alias counts for its model."""
    before = proxy_server.metric("appliance_requests_total", {**ASKED, "code": "2xx"})

    proxy_server.post(CHAT_PATH, CHAT_REQUEST | {"model": "made-up"})
    proxy_server.post(CHAT_PATH, CHAT_REQUEST | {"model": "gpt"})

    with urllib.request.urlopen(f"{proxy_server.url}/metrics", timeout=10) as response:
        assert b"made-up" not in response.read()
    assert proxy_server.metric("appliance_requests_total", {"model": "none", "code": "4xx"}) >= 1
    assert proxy_server.metric("appliance_requests_total", {**ASKED, "code": "2xx"}) == before + 1


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT_PATH, CHAT_REQUEST, {"prompt_tokens": 3, "output_tokens": 4}),
        (
            CHAT_PATH,
            CHAT_REQUEST | {"stream": True, "stream_options": {"include_usage": True}},
            {"prompt_tokens": 3, "output_tokens": 4},
        ),
        (CHAT_PATH, CHAT_REQUEST | {"stream": True}, {"prompt_tokens": 3, "output_tokens": 4}),
        ("/v1/messages", CHAT_REQUEST | {"max_tokens": 5, "stream": True}, {"output_tokens": 4}),
    ],
)
def test_tokens_of_an_upstream_are_those_of_its_usage(
    proxy_server: ProxyProcess, plain: Upstream, path: str, body: Mapping[str, Any], said: Mapping[str, int]
) -> None:
    """A stream says them in its last event, whether its client asked for that or not."""
    request_id = f"usage-{abs(hash((path, str(body))))}"
    before = proxy_server.metric("appliance_tokens_total", {"direction": "output"})

    proxy_server.stream(path, body, {"X-Request-Id": request_id})

    logged = proxy_server.request_ended(request_id)
    assert said.items() <= logged.items()
    assert ("output_tokens" in logged) == ("output_tokens" in said)
    assert proxy_server.metric("appliance_tokens_total", {"direction": "output"}) == before + said.get(
        "output_tokens", 0
    )


def test_a_stream_has_its_first_token_and_its_pace_measured(proxy_server: ProxyProcess, plain: Upstream) -> None:
    """The time to the first token is that of the first bytes, not of the last."""
    last = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 5}})
    plain.on(CHAT_PATH, stream(event({"choices": []}), 0.5, last, event("[DONE]")))
    names = ("appliance_time_to_first_token_seconds_count", "appliance_time_per_output_token_seconds_sum")
    before = [proxy_server.metric(name, {"model": "talk"}) for name in names]

    proxy_server.stream(CHAT_PATH, CHAT_REQUEST | {"stream": True}, {"X-Request-Id": "paced"})

    logged = proxy_server.request_ended("paced")
    after = [proxy_server.metric(name, {"model": "talk"}) for name in names]
    assert after[0] == before[0] + 1
    # Half of the pause, because the proxy may read the first bytes late.
    assert after[1] - before[1] >= 0.25 / 4
    assert logged["first_seconds"] + 0.25 <= logged["seconds"]
    assert logged["admitted_seconds"] <= logged["first_seconds"]
    assert logged["streamed"] is True


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_is_told_as_such(proxy_server: ProxyProcess, plain: Upstream, *, streams: bool) -> None:
    """Neither as good nor as an error of the server, whatever status was on its way."""
    plain.on(CHAT_PATH, stream(event({"choices": []}), FOR_EVER))
    before = proxy_server.metric("appliance_requests_total", {**ASKED, "code": "499"})

    with open_stream(proxy_server.port, CHAT_PATH, CHAT_REQUEST | {"stream": streams}) as connection:
        wait_until(lambda: any(not each.is_answered for each in plain.calls), 10)
        if streams:
            assert b"200 OK" in connection.recv(1024)

    wait_until(lambda: proxy_server.metric("appliance_requests_total", {**ASKED, "code": "499"}) == before + 1, 10)
    left = [each for each in proxy_server.events() if each["event"] == "request.ended" and each["status"] == 499]
    assert left[-1]["model"] == "talk"


async def _breaking() -> AsyncIterator[Piece]:
    yield event({"choices": []})
    await asyncio.sleep(0.1)
    raise ConnectionResetError


def test_a_stream_that_breaks_counts_as_an_error(proxy_server: ProxyProcess, plain: Upstream) -> None:
    """Its status was 200 when it was sent; the log has both."""
    plain.on(CHAT_PATH, Answer(body=_breaking(), media_type=SSE))
    before = proxy_server.metric("appliance_requests_total", {**ASKED, "code": "5xx"})

    proxy_server.stream(CHAT_PATH, CHAT_REQUEST | {"stream": True}, {"X-Request-Id": "broken"})

    logged = proxy_server.request_ended("broken")
    assert (logged["status"], logged["late_status"], logged["error"]) == (200, 502, "GatewayError")
    assert proxy_server.metric("appliance_requests_total", {**ASKED, "code": "5xx"}) == before + 1


def test_the_log_has_one_event_for_each_request_and_none_for_probes(
    proxy_server: ProxyProcess, plain: Upstream
) -> None:
    """The path is without its query, where people put keys."""
    for path in ("/livez", "/readyz", "/health", "/metrics", "/v2/health/ready", "/v2/models/talk/ready"):
        proxy_server.stream(path, None, {"X-Request-Id": f"probe{path}"})

    proxy_server.ask("/v1/models?api-key=geheim", None, {"X-Request-Id": "last"})

    logged = proxy_server.request_ended("last")
    assert (logged["method"], logged["path"], logged["protocol"]) == ("GET", "/v1/models", "openai")
    told = [each for each in proxy_server.events() if str(each.get("request_id", "")).startswith("probe")]
    assert not [each for each in told if each["event"] == "request.ended"]
    assert "geheim" not in proxy_server.log.read_text()
