"""Requests that another model of the file answers, and what probes, keys, metrics and the log have of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from server_process import ServerProcess, free_port, wait_until
from upstreams import FOR_EVER, Upstream, error, event, stream

CHAT = "/v1/chat/completions"

CONFIG = """
models:
- name: small
  class: proxy
  aliases: [gpt-4o-mini]
  upstreams: [{{url: {one}}}]
  fallback:
  - {{model: large, on: [context_length]}}
  - {{model: reserve}}
  {quiet}
- name: large
  class: proxy
  upstreams: [{{url: {two}}}]
  fallback: [{{model: reserve, on: [unavailable]}}]
  {quiet}
- name: reserve
  class: proxy
  upstreams: [{{url: {three}, model: theirs}}]
  request: {{defaults: {{top_p: 0.5}}}}
  {quiet}
- name: down
  class: proxy
  upstreams: [{{url: "http://127.0.0.1:{nobody}"}}]
  fallback: [{{model: reserve, on: [unavailable]}}]
- name: narrow
  class: proxy
  upstreams: [{{url: {one}}}]
  limits: {{concurrent: 1, queued: 0}}
  fallback: [{{model: reserve, on: [overloaded]}}]
  {quiet}
server:
  api_keys:
  - {{name: all, value: key-of-an-operator, admin: true}}
  - {{name: one, value: key-of-a-small-client, models: [small], limits: {{requests_per_minute: 2}}}}
"""
QUIET = "health: {interval_seconds: 3600}\n  breaker: {failures: 1000000}\n  retry: {attempts: 0}"

TOO_LONG = error(400, "This model's maximum context length is 16 tokens.")


@pytest.fixture(scope="module")
def server(_upstreams: tuple[Upstream, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the whole file."""
    one, two, three = _upstreams
    folder: Path = tmp_path_factory.mktemp("fallback")
    file = folder / "fallback.yaml"
    urls = {"one": one.url, "two": two.url, "three": three.url, "nobody": free_port()}
    file.write_text(CONFIG.format(**urls, quiet=QUIET))
    served = ServerProcess(file, folder / "log").wait_until_ready(30)
    yield served
    assert served.stop() == 0, served.log_tail()


def _ask(server: ServerProcess, model: str, key: str = "key-of-an-operator", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return httpx.post(f"{server.url}{CHAT}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def _counts(upstreams: tuple[Upstream, ...]) -> list[int]:
    return [len(each.calls) for each in upstreams]


def test_a_request_that_is_too_long_goes_to_the_larger_model(
    server: ServerProcess, upstreams: tuple[Upstream, ...]
) -> None:
    """Streamed or not, under the client's name; a header, the log and the metrics say which model answered."""
    upstreams[0].on(CHAT, TOO_LONG)
    whole = _ask(server, "gpt-4o-mini")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key-of-an-operator", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(model="small", messages=[{"role": "user", "content": "hi"}], stream=True)
        )

    assert (whole.status_code, whole.json()["model"]) == (200, "gpt-4o-mini")
    assert whole.headers["x-fallback-model"] == "large"
    assert {chunk.model for chunk in chunks} == {"small"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hi"
    assert [call.json()["model"] for call in upstreams[1].calls] == ["large", "large"]
    metrics = httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer key-of-an-operator"}).text
    assert 'appliance_fallbacks_total{model="small",reason="context_length",target="large"} 2.0' in metrics
    events = [each for each in server.events() if each["event"] == "request.fell_back"]
    assert (events[0]["model"], events[0]["target"], events[0]["reason"]) == ("small", "large", "context_length")


def test_a_fallback_has_fallbacks_and_changes_of_its_own(
    server: ServerProcess, upstreams: tuple[Upstream, ...]
) -> None:
    """The next one of the list follows if none of them can answer."""
    upstreams[0].on(CHAT, TOO_LONG)
    upstreams[1].on(CHAT, error(503))
    answer = _ask(server, "small")

    assert (answer.status_code, answer.json()["model"]) == (200, "small")
    assert answer.headers["x-fallback-model"] == "reserve"
    assert (upstreams[2].calls[0].json()["model"], upstreams[2].calls[0].json()["top_p"]) == ("theirs", 0.5)


def test_the_first_error_is_returned_if_no_fallback_can_answer(
    server: ServerProcess, upstreams: tuple[Upstream, ...]
) -> None:
    """An error of the request is returned at once, without asking another model."""
    upstreams[0].on(CHAT, error(429, "first"))
    upstreams[2].on(CHAT, error(503, "second"))
    overloaded = _ask(server, "small")
    upstreams[0].on(CHAT, error(400, "wrong"))
    wrong = _ask(server, "small")

    assert (overloaded.status_code, overloaded.json()["error"]["message"]) == (429, "first")
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (400, "wrong")
    assert _counts(upstreams) == [2, 0, 1]
    assert server.request_ended(overloaded.headers["x-request-id"])["model"] == "small"


def test_a_model_that_is_unavailable_is_ready_with_its_fallback(
    server: ServerProcess, upstreams: tuple[Upstream, ...]
) -> None:
    """The probe names both, and requests are answered."""
    status, body = server.ask("/readyz", None, {"Authorization": "Bearer key-of-an-operator"})
    (down,) = [each for each in body["models"] if each["name"] == "down"]
    answer = _ask(server, "down")

    assert (status, down["state"], down["fallback"]) == (200, "unavailable", [{"model": "reserve", "ready": True}])
    assert (answer.status_code, answer.json()["model"]) == (200, "down")
    assert _counts(upstreams) == [0, 0, 1]


def test_a_key_is_charged_once(server: ServerProcess, upstreams: tuple[Upstream, ...]) -> None:
    """Its limit is no reason to fall back; the fallback may be a model that the key cannot use, or see, by itself."""
    upstreams[0].on(CHAT, TOO_LONG)
    answers = [_ask(server, "small", "key-of-a-small-client") for _ in range(3)]
    refused = _ask(server, "large", "key-of-a-small-client")

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers[:2]] == ["1", "0"]
    assert "x-fallback-model" not in answers[0].headers
    assert refused.status_code == 404


def test_a_model_with_a_full_queue_falls_back(server: ServerProcess, upstreams: tuple[Upstream, ...]) -> None:
    """While its one request is running."""
    upstreams[0].on(CHAT, stream(event({"choices": []}), FOR_EVER))
    with httpx.stream(
        "POST",
        f"{server.url}{CHAT}",
        json={"model": "narrow", "messages": [], "stream": True},
        headers={"Authorization": "Bearer key-of-an-operator"},
        timeout=30,
    ) as running:
        pieces = running.iter_bytes()
        next(pieces)
        other = _ask(server, "narrow")
    wait_until(lambda: upstreams[0].calls[0].has_left, 10)

    assert (other.status_code, other.headers["x-fallback-model"]) == (200, "reserve")
