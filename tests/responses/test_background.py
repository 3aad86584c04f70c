"""Responses in the background: polled, streamed from an offset, cancelled, and run again after a restart."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from server_process import ServerProcess, wait_until
from stored_server import config_file
from upstreams import FOR_EVER, SSE, Answer, Asked, Upstream, error, json_answer, sse, well_behaved


def ended(client: OpenAI, response_id: str) -> Response:
    """Poll until a response has ended."""
    found: list[Response] = []

    def has_ended() -> bool:
        found.append(client.responses.retrieve(response_id))
        return found[-1].status not in {"queued", "in_progress"}

    wait_until(has_ended, 60)
    return found[-1]


class Gate:
    """Holds back the end of an upstream's stream until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def __call__(self, asked: Asked) -> Answer:
        return Answer(body=self._pieces(asked), media_type=SSE)

    def _pieces(self, asked: Asked) -> Iterator[bytes | float]:
        *first, last = sse(asked)
        yield from first
        while not self.is_open.is_set():
            yield 0.02
        yield last


def test_a_response_in_the_background_is_polled(client: OpenAI, upstream: Upstream) -> None:
    """It is queued at once, and any worker says when it has ended; the model gets an ordinary request."""
    queued = client.responses.create(model="ours", input="Hello", background=True, metadata={"a": "b"})
    assert (queued.status, queued.background, queued.metadata) == ("queued", True, {"a": "b"})

    done = ended(client, queued.id)

    assert (done.id, done.status, done.background, done.output_text) == (
        queued.id,
        "completed",
        True,
        "You said: Hello",
    )
    assert not {"background", "previous_response_id"} & upstream.calls[-1].json().keys()
    after = client.responses.create(model="ours", input="Again", previous_response_id=queued.id)
    assert after.output_text == "You said: Again"


def test_it_is_in_progress_while_the_model_works(client: OpenAI, upstream: Upstream) -> None:
    """And it cannot be continued yet."""
    upstream.on("/v1/responses", Answer(wait=FOR_EVER))
    queued = client.responses.create(model="ours", input="Hello", background=True)

    wait_until(lambda: client.responses.retrieve(queued.id).status == "in_progress", 30)

    with pytest.raises(openai.BadRequestError, match="in_progress"):
        client.responses.create(model="ours", input="Again", previous_response_id=queued.id)
    client.responses.cancel(queued.id)


def test_a_stream_in_the_background_is_read_on_from_an_offset(client: OpenAI, upstream: Upstream) -> None:
    """By another connection, and so by any worker, while it runs and after it has ended."""
    gate = Gate()
    upstream.on("/v1/responses", gate)
    with client.responses.create(model="ours", input="Hello", background=True, stream=True) as events:
        before = list(islice(events, 4))
    assert [each.type for each in before[:2]] == ["response.created", "response.queued"]
    response_id = before[0].response.id  # type: ignore[union-attr]  # its type is known
    assert client.responses.retrieve(response_id).status in {"queued", "in_progress"}

    with client.responses.retrieve(response_id, stream=True, starting_after=before[-1].sequence_number) as events:
        gate.is_open.set()
        after = list(events)

    everything = list(client.responses.retrieve(response_id, stream=True))
    assert [*before, *after] == everything
    assert [each.sequence_number for each in everything] == list(range(len(everything)))
    assert everything[-1].type == "response.completed"
    assert everything[-1].response == ended(client, response_id)


def test_a_client_that_leaves_does_not_end_it(client: OpenAI) -> None:
    """Only `cancel` does."""
    with client.responses.create(model="ours", input="Hello", background=True, stream=True) as events:
        first = next(iter(events))

    assert ended(client, first.response.id).output_text == "You said: Hello"  # type: ignore[union-attr]  # its type


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_cancelled_response_stops_its_upstream(client: OpenAI, upstream: Upstream, is_streamed: bool) -> None:
    """Whichever worker is told; it stays cancelled, and its stream ends."""
    answer = Gate() if is_streamed else Answer(wait=FOR_EVER)
    upstream.on("/v1/responses", answer)
    created = client.responses.create(model="ours", input="Hello", background=True, stream=is_streamed)
    events: Iterator[Any] = iter(()) if isinstance(created, Response) else iter(created)  # Any: events
    response_id = created.id if isinstance(created, Response) else next(events).response.id
    wait_until(lambda: bool(upstream.calls), 30)

    assert client.responses.cancel(response_id).status == "cancelled"

    wait_until(lambda: upstream.calls[0].has_left, 30)
    assert client.responses.cancel(response_id).status == "cancelled"
    assert client.responses.retrieve(response_id).status == "cancelled"
    assert all(each.type != "response.completed" for each in events)


def test_a_deleted_response_stops_its_upstream(client: OpenAI, upstream: Upstream) -> None:
    """Nothing of it is written afterwards."""
    upstream.on("/v1/responses", Answer(wait=FOR_EVER))
    created = client.responses.create(model="ours", input="Hello", background=True)
    wait_until(lambda: bool(upstream.calls), 30)

    client.responses.delete(created.id)

    wait_until(lambda: upstream.calls[0].has_left, 30)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_an_error_of_the_model_is_the_end(client: OpenAI, upstream: Upstream) -> None:
    """The response has failed, and says why."""
    upstream.on("/v1/responses", json_answer({"error": {"message": "no such tool"}}, 400))
    whole = client.responses.create(model="ours", input="Hello", background=True)
    streamed = list(client.responses.create(model="ours", input="Hello", background=True, stream=True))

    failed = ended(client, whole.id)

    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.message == "no such tool"
    assert streamed[-1].type == "response.failed"


@pytest.mark.parametrize("is_streamed", [True, False])
def test_it_waits_while_its_upstream_is_overloaded(client: OpenAI, upstream: Upstream, is_streamed: bool) -> None:
    """It is sent again, as the lines of batches are, and its events begin once."""
    upstream.on("/v1/responses", error(429, "slow down"), error(503, "away"), well_behaved)

    created = client.responses.create(model="ours", input="Hello", background=True, stream=is_streamed)

    if isinstance(created, Response):
        assert ended(client, created.id).output_text == "You said: Hello"
    else:
        kinds = [each.type for each in created]
        assert (kinds[-1], kinds.count("response.created")) == ("response.completed", 1)
    assert len(upstream.calls) == 3


def test_many_responses_wait_for_their_turn(client: OpenAI, upstream: Upstream) -> None:
    """They take part of the model's capacity, and all are answered."""
    created = [client.responses.create(model="ours", input=f"Hello {each}", background=True) for each in range(12)]

    texts = [ended(client, each.id).output_text for each in created]

    assert texts == [f"You said: Hello {each}" for each in range(12)]


MEMORY = "responses: {store: memory}"


def files(folder: Path) -> str:
    """Return the config of a store in files."""
    return f"responses: {{store: file, directory: {folder}/responses}}\nserver: {{drain_seconds: 0.2, workers: 2}}"


@pytest.mark.parametrize("signal_name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_nothing_is_lost_at_a_restart(
    serve: Callable[..., ServerProcess], upstreams: Callable[[], Upstream], tmp_path: Path, signal_name: str
) -> None:
    """What has ended is read, what was running or queued runs again, and what was cancelled stays so."""
    upstream = upstreams()
    file = config_file(tmp_path, upstream, files(tmp_path))
    server = serve(file=file).wait_until_ready(60)
    body = {"model": "ours", "input": "Hello"}
    _, done = server.post("/v1/responses", body)
    upstream.on("/v1/responses", Answer(wait=FOR_EVER))
    running = [server.post("/v1/responses", {**body, "background": True, "stream": False})[1] for _ in range(6)]
    streamed = first_event(server, {**body, "background": True, "stream": True})
    _, cancelled = server.ask(f"/v1/responses/{running[0]['id']}/cancel", b"")
    wait_until(lambda: len(upstream.calls) >= 2, 30)
    conversation = server.post("/v1/conversations", {"items": [{"role": "user", "content": "Hi"}]})[1]
    if signal_name == "SIGKILL":
        for process in server.descendants():
            process.kill()
        server.process.kill()
        server.process.wait(30)
    else:
        assert server.stop() == 0, server.log_tail()
    upstream.on("/v1/responses", well_behaved)

    server = serve(file=file).wait_until_ready(60)

    assert server.get(f"/v1/responses/{done['id']}")[1] == done
    assert server.get(f"/v1/responses/{cancelled['id']}")[1]["status"] == "cancelled"
    assert server.get(f"/v1/conversations/{conversation['id']}")[1] == conversation
    for each in (*running[1:], streamed):
        wait_until(lambda each=each: status_of(server, each["id"]) == "completed", 60, server.log_tail)  # type: ignore[misc]
    text = server.stream(f"/v1/responses/{streamed['id']}?stream=true", None).decode()
    assert text.count("event: response.created") == text.count("event: response.completed") == 1
    assert server.stop() == 0, server.log_tail()
    assert not list((tmp_path / "responses" / ".claims").iterdir())


def test_the_work_of_a_worker_that_died_goes_on(
    serve: Callable[..., ServerProcess], upstreams: Callable[[], Upstream], tmp_path: Path
) -> None:
    """Another worker, or the one that takes its place, runs it again."""
    upstream = upstreams()
    upstream.on("/v1/responses", Answer(wait=FOR_EVER))
    server = serve(file=config_file(tmp_path, upstream, "responses: {}\nserver: {workers: 2}")).wait_until_ready(60)
    body = {"model": "ours", "input": "Hello", "background": True}
    created = [server.post("/v1/responses", body)[1]["id"] for _ in range(4)]
    wait_until(lambda: bool(upstream.calls), 30)
    upstream.on("/v1/responses", well_behaved)

    for process in server.descendants():
        process.kill()
        wait_until(lambda: server.get("/readyz")[0] == 200, 60, server.log_tail)

    for each in created:
        path = f"/v1/responses/{each}"
        # The worker that took the connection may be one that dies.
        wait_until(lambda path=path: '"completed"' in json.dumps(server.get(path)[1]), 60, server.log_tail)  # type: ignore[misc]
    assert server.stop() == 0, server.log_tail()


def status_of(server: ServerProcess, response_id: str) -> str:
    """Return the status of a response."""
    status: str = server.get(f"/v1/responses/{response_id}")[1]["status"]
    return status


def first_event(server: ServerProcess, body: dict[str, Any]) -> dict[str, Any]:
    """Return the response of a stream's first event, and leave."""
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body) as answer:
        line = next(each for each in answer.iter_lines() if each.startswith("data:"))
    response: dict[str, Any] = json.loads(line.removeprefix("data:"))["response"]
    return response


def test_a_response_whose_key_was_removed_fails(
    serve: Callable[..., ServerProcess], upstreams: Callable[[], Upstream], tmp_path: Path
) -> None:
    """It does not run for nobody."""
    upstream = upstreams()
    upstream.on("/v1/responses", Answer(wait=FOR_EVER))
    keys = "  api_keys: [{{name: {}, value: sk-0123456789abcdef}}]\n"
    base = f"responses: {{store: file, directory: {tmp_path}/responses}}\nserver:\n  drain_seconds: 0\n"
    file = config_file(tmp_path, upstream, base + keys.format("old"))
    server = serve(file=file).wait_until_ready(60)
    headers = {"Authorization": "Bearer sk-0123456789abcdef"}
    body = {"model": "ours", "input": "Hello", "background": True}
    _, created = server.ask("/v1/responses", body, headers)
    assert server.stop() == 0, server.log_tail()
    config_file(tmp_path, upstream, base + keys.format("new"))

    server = serve(file=file).wait_until_ready(60)

    (path,) = tmp_path.glob(f"responses/old/{created['id']}")
    wait_until((path / "final.json").exists, 30, server.log_tail)
    response = json.loads((path / "final.json").read_bytes())["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "key_removed")
    assert server.stop() == 0, server.log_tail()


def test_a_key_removed_while_the_server_runs_begins_nothing(
    serve: Callable[..., ServerProcess], upstreams: Callable[[], Upstream], tmp_path: Path
) -> None:
    """What runs goes on; what is queued for the model fails when its turn comes."""
    upstream, gate = upstreams(), Gate()
    upstream.on("/v1/responses", gate)
    keys = "  api_keys: [{{name: {}, value: {}}}]\n"
    base = f"responses: {{store: file, directory: {tmp_path}/responses}}\nserver:\n"
    file = config_file(tmp_path, upstream, base + keys.format("old", "sk-0123456789abcdef"))
    server = serve(file=file).wait_until_ready(60)
    headers = {"Authorization": "Bearer sk-0123456789abcdef"}
    body = {"model": "ours", "input": "Hello", "background": True, "stream": True}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        for _ in range(5):
            with client.stream("POST", "/v1/responses", json=body) as answer:
                assert answer.status_code == 200
    wait_until(lambda: len(upstream.calls) == 2, 30, server.log_tail)

    config_file(tmp_path, upstream, base + keys.format("new", "sk-fedcba9876543210"))
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: any(each["event"] == "config.applied" for each in server.events()), 30, server.log_tail)
    gate.is_open.set()

    wait_until(lambda: len(list(tmp_path.glob("responses/old/*/final.json"))) == 5, 30, server.log_tail)
    ends = [json.loads(each.read_bytes())["response"] for each in tmp_path.glob("responses/old/*/final.json")]
    codes = sorted((each["error"] or {}).get("code", "") for each in ends)
    assert codes == ["", "", "key_removed", "key_removed", "key_removed"]
    assert len(upstream.calls) == 2
    assert server.stop() == 0, server.log_tail()
