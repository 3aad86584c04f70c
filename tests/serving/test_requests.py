"""What every request meets, whatever it asks: names, ids, refusals, logs, metrics, and leaving early."""

from __future__ import annotations

import json
import re
import socket
import struct
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from questions import COUNT
from server_process import ServerProcess, open_stream, wait_until
from test_readme import answer, question

STORY = {"messages": [{"role": "user", "content": "Write a very long story."}], "max_tokens": 1900, "ignore_eos": True}

ROOT = Path(__file__).parent.parent.parent

# Every series that vLLM's public dashboard shows: examples/observability/prometheus_grafana/grafana.json of its
# repository.
VLLM_DASHBOARD = {
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:inter_token_latency_seconds_count",
    "vllm:inter_token_latency_seconds_sum",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_max_num_generation_tokens_sum",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_to_first_token_seconds_count",
    "vllm:time_to_first_token_seconds_sum",
}


def _metrics(server: ServerProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
        return {sample.name: sample.value for family in families for sample in family.samples}


def _is_idle(server: ServerProcess) -> bool:
    metrics = _metrics(server)
    return metrics["vllm:num_requests_running"] == 0 and metrics["appliance_requests_running"] == 0


def test_the_model_may_be_left_out_when_there_is_one(server: ServerProcess) -> None:
    """A request without `model` goes to the only model."""
    status, body = server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1})

    assert status == 200
    assert body["model"] == "smollm2"


@pytest.mark.parametrize("name", ["smollm2", "org/small", "wild"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_response_repeats_the_name_that_the_client_used(server: ServerProcess, name: str, is_streamed: bool) -> None:
    """Its own, an alias or an adapter's, in each protocol, whole and streamed."""
    messages = [{"role": "user", "content": "Hi"}]
    bodies: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 2},
        "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
        "/v1/messages": {"messages": messages, "max_tokens": 2},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    }

    for path, body in bodies.items():
        answer = server.stream(path, {"model": name, "stream": is_streamed, **body}).decode()
        assert set(re.findall(r'"model": ?"(.*?)"', answer)) == {name}, path


def test_more_tokens_than_the_context_has_are_refused(server: ServerProcess) -> None:
    """By default a client learns that it does not get what it asks for."""
    status, answer = server.post("/v1/chat/completions", {**STORY, "max_tokens": 32_000})

    assert status == 400
    assert "max_tokens=32000" in answer["error"]["message"]


def test_an_alias_has_request_settings_of_its_own(server: ServerProcess) -> None:
    """They fill in what a client leaves out."""
    question = {"messages": [{"role": "user", "content": "Count to ten."}]}

    default = server.post("/v1/chat/completions", {"model": "brief", **question})[1]
    own = server.post("/v1/chat/completions", {"model": "brief", "max_tokens": 3, **question})[1]

    assert [each["usage"]["completion_tokens"] for each in (default, own)] == [2, 3]


@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_both_prefixes_lead_to_the_same_routes(server: ServerProcess, prefix: str) -> None:
    """OpenAI's and KServe's base URLs both work."""
    status, body = server.get(f"{prefix}/v1/models")

    assert status == 200
    assert [model["id"] for model in body["data"]] == ["smollm2", "gpt-4o-mini", "org/small", "brief", "wild"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b"\xff\xfe", 400),
        ("/v1/chat/completions", b"", 400),
        ("/v1/chat/completions", b"[]", 400),
        ("/v1/chat/completions", b'{"model": 5}', 400),
        ("/v1/chat/completions", b'{"messages": [' + b"[" * 100_000, 400),
        ("/v1/responses", b'{"model": "smollm2"}', 400),
        ("/v1/messages", b'{"model": "smollm2"}', 400),
        ("/tokenize", b"{}", 400),
        ("/v1/nothing", b"{}", 404),
        ("/v1/chat/completions", None, 405),
        ("/v1/completions", b" " * (33 * 1024 * 1024), 413),
    ],
)
def test_every_refusal_has_the_shape_clients_know(
    server: ServerProcess, path: str, body: bytes | None, status: int
) -> None:
    """Whatever is wrong with a request, the body is OpenAI's error object."""
    got, answer = server.ask(path, body)

    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_request_id_is_taken_and_echoed(server: ServerProcess) -> None:
    """A client's id comes back, and is in the log's event of that request."""
    request = urllib.request.Request(f"{server.url}/v1/models", headers={"X-Request-Id": "mine-4711"})
    with urllib.request.urlopen(request) as response:
        echoed = response.headers["X-Request-Id"]

    assert echoed == "mine-4711"
    wait_until(lambda: any(event.get("request_id") == "mine-4711" for event in server.events()), 10)


def test_a_harmful_request_id_is_replaced(server: ServerProcess) -> None:
    """An id that could break a log or is endless is not taken."""
    request = urllib.request.Request(f"{server.url}/v1/models", headers={"X-Request-Id": "x" * 500})
    with urllib.request.urlopen(request) as response:
        echoed = response.headers["X-Request-Id"]

    assert len(echoed) == 32


def test_an_id_in_the_body_names_the_answer(server: ServerProcess) -> None:
    """As in vLLM."""
    _, answer = server.post("/v1/chat/completions", {**STORY, "max_tokens": 1, "request_id": "mine-4712"})

    assert answer["id"] == "chatcmpl-mine-4712"


def test_a_refusal_carries_a_request_id_too(server: ServerProcess) -> None:
    """Also a request that no route takes can be found in the log."""
    connection = open_stream(server.port, "/v1/nothing", {})
    with connection:
        head = connection.recv(4096).decode().lower()

    assert "x-request-id: " in head


def test_the_log_is_json_and_holds_no_prompt(server: ServerProcess) -> None:
    """Every line of the log, ours and vLLM's, is an object, none is Granian's, and none repeats what a client said."""
    secret = "xylophone zeppelin quagmire"
    server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}], "max_tokens": 2})
    server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}], "max_tokens": -1})
    wait_until(lambda: sum(event["event"] == "request.ended" for event in server.events()) >= 2, 10)

    events = server.events()
    loggers = {str(event.get("logger", "")).split(".")[0] for event in events}
    assert {"appliance", "vllm"} <= loggers
    assert "_granian" not in loggers
    assert "zeppelin" not in json.dumps(events)


def test_metrics_keep_vllms_names(server: ServerProcess) -> None:
    """Dashboards made for vLLM find their series, by the name of the model."""
    server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})

    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    names = {sample.name for sample in samples if sample.labels.get("model_name") == "smollm2"}
    assert names >= VLLM_DASHBOARD | set(re.findall(r"vllm:\w+", (ROOT / "dashboards" / "grafana.json").read_text()))
    assert _metrics(server)["vllm:generation_tokens_total"] > 0


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("how", ["closes", "resets", "half-closes"])
def test_a_client_that_leaves_ends_its_generation(server: ServerProcess, how: str, streams: bool) -> None:
    """The engine stops working for somebody who is gone."""
    wait_until(lambda: _is_idle(server), 10)
    connection = open_stream(server.port, "/v1/chat/completions", STORY | {"stream": streams})
    wait_until(lambda: _metrics(server)["appliance_requests_running"] == 1, 10)
    if streams:
        assert b"200 OK" in connection.recv(1024)
    if how == "half-closes":
        connection.shutdown(socket.SHUT_WR)
    elif how == "resets":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    else:
        connection.close()

    wait_until(lambda: _is_idle(server), 10)
    connection.close()


def test_a_reader_that_dawdles_does_not_lose_its_stream(server: ServerProcess) -> None:
    """A client that reads late gets the whole answer to its last mark."""
    body = {"prompt": COUNT, "max_tokens": 64, "ignore_eos": True, "temperature": 0}
    _, whole = server.post("/v1/completions", body)
    connection = open_stream(server.port, "/v1/completions", body | {"stream": True})
    wait_until(lambda: _metrics(server)["appliance_requests_running"] == 1, 10)
    wait_until(lambda: _is_idle(server), 60)
    received = b""
    with connection:
        while b"[DONE]" not in received:
            piece = connection.recv(65536)
            assert piece, received
            received += piece

    events = [json.loads(line[len(b"data: ") :]) for line in received.splitlines() if line.startswith(b"data: {")]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    assert text == whole["choices"][0]["text"]


def test_the_readmes_question_gets_the_readmes_answer(server: ServerProcess) -> None:
    """What the README shows is what its curl gets."""
    status, body = server.post("/v1/chat/completions", question())

    assert status == 200
    assert body["choices"][0]["message"]["content"] == answer()


def test_the_cache_holds_what_was_planned(server: ServerProcess) -> None:
    """The plan of the model in the probes has what vLLM came to, to the token and to the byte."""
    _, body = server.get("/readyz")
    plan = body["models"][0]["plan"]

    assert plan["measured"]["kv_tokens"] == plan["planned"]["kv_tokens"]
    assert plan["measured"]["load_seconds"] > 0
    assert plan["measured"]["weight_bytes"] == plan["planned"]["weight_bytes"] > 134_000_000 * 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100_000}),
        ("/v1/responses", {"input": "word " * 3000}),
        (
            "/v1/messages",
            {"model": "smollm2", "messages": [{"role": "user", "content": "word " * 3000}], "max_tokens": 9},
        ),
    ],
)
def test_a_request_that_is_too_long_has_openais_code(server: ServerProcess, path: str, body: dict[str, object]) -> None:
    """Clients and fallbacks tell it by the code from other mistakes."""
    status, answer = server.post(path, body)

    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
