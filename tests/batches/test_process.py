"""Batches of a server's process that is killed at any moment, and of several workers."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from server_process import ServerProcess, wait_until
from upstreams import Upstream

ENDPOINT = "/v1/chat/completions"
PARROT = "class: generative, engine: {python: 'examples.parrot:Parrot'}"


def _file(folder: Path, model: str = PARROT) -> Path:
    """Write the config of a fast model with batches."""
    file = folder / "config.yaml"
    file.write_text(f"models: [{{name: one, {model}}}]\nbatches: {{directory: {folder / 'store'}, concurrent: 16}}\n")
    return file


def _lines(count: int) -> bytes:
    body = {"model": "one", "messages": [{"role": "user", "content": "hello"}]}
    lines = ({"custom_id": f"line-{number}", "url": ENDPOINT, "body": body} for number in range(count))
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def _create(server: ServerProcess, count: int) -> str:
    with _client(server) as client:
        file = client.files.create(file=("in.jsonl", _lines(count)), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
        return batch.id


def _results(server: ServerProcess, batch_id: str, count: int) -> None:
    """Wait for the end of a batch, and require each of its lines once."""
    with _client(server) as client:
        wait_until(lambda: client.batches.retrieve(batch_id).status == "completed", 60, server.log_tail)
        batch = client.batches.retrieve(batch_id)
        assert batch.request_counts is not None
        assert batch.output_file_id is not None
        found = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert sorted(line["custom_id"] for line in found) == sorted(f"line-{number}" for number in range(count))
        assert all(line["response"]["status_code"] == 200 for line in found)
        assert batch.request_counts.completed == count


def _kills(serve: Callable[..., ServerProcess], file: Path, kills: int, count: int) -> None:
    server = serve(file=file).wait_until_ready()
    batch_id = _create(server, count)
    store = file.with_name("store")
    for number in range(kills):
        # At a length of the journal, or at some moment while files of results are made.
        length = random.randrange(1 + 300 * count * (number + 1) // kills)

        def is_there(length: int = length) -> bool:
            journals = [*store.glob("_/batch_*/output.jsonl")]
            return not store.exists() or not journals or any(each.stat().st_size >= length for each in journals)

        wait_until(is_there, 30, server.log_tail)
        time.sleep(random.random() * 0.05)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
        server = serve(file=file).wait_until_ready()
    _results(server, batch_id, count)


def test_a_killed_server_goes_on_where_it_was(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """After `kill -9` no line is lost, and none is there twice."""
    _kills(serve, _file(tmp_path), 1, 1000)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_server_that_is_killed_again_and_again_loses_nothing(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """Wherever the journal is cut."""
    _kills(serve, _file(tmp_path), 25, 10_000)


def test_one_of_several_workers_runs_a_batch(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """All of them know it, and each line is run once."""
    file = _file(tmp_path, f"class: proxy, upstreams: [{{url: '{upstream.url}'}}]")
    server = serve("server.workers=2", file=file).wait_until_ready()
    batches = [_create(server, 100) for _ in range(2)]

    for batch in batches:
        _results(server, batch, 100)
    started = [event["batch"] for event in server.events() if event["event"] == "batch.started"]
    assert sorted(started) == sorted(batches)
    ends: list[dict[str, Any]] = [event for event in server.events() if event.get("batch") == batches[0]]
    assert sum(event["event"] == "request.ended" for event in ends) == 100
