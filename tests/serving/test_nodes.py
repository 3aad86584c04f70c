"""One model on two machines, for real: this one, and another at the end of a cable, which is a network namespace."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.confined import HERE, THERE, link, require_root
from server_process import ServerProcess, free_port, has_exited, wait_until

QUESTION = {"prompt": "Hi", "max_tokens": 4, "ignore_eos": True}

pytestmark = pytest.mark.timeout(600)


@dataclass
class Pair:
    """Rank 0 here, and rank 1 there."""

    first: ServerProcess
    second: ServerProcess


@pytest.fixture
def pair(serve: Callable[..., ServerProcess], divisible: Path, tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """Starts both from the same file, as far as their ranks and addresses let them."""
    require_root()
    model = {
        "name": "tiny",
        "class": "generative",
        "storage": {"uri": str(divisible)},
        "engine": {"max_model_len": 256, "kv_cache_memory_bytes": 50_000_000, "args": {"load_format": "dummy"}},
    }
    file = tmp_path / "two.yaml"

    def start(*overrides: str, **layout: int) -> Pair:
        nodes = {"count": 2, "rank": 0, "address": HERE, "port": free_port()}
        file.write_text(json.dumps({"models": [{**model, "layout": {**layout, "nodes": nodes}}]}))
        second = serve("models.tiny.layout.nodes.rank=1", *overrides, file=file, prefix=cable.prefix, host=THERE)
        return Pair(serve(*overrides, file=file, host=HERE), second)

    with link() as cable:
        yield start


def _until_both_serve(pair: Pair) -> dict[str, Any]:
    """Wait for both; what the follower says of its model."""
    pair.first.wait_until_ready()
    pair.second.wait_until_ready(60)
    shown: dict[str, Any] = pair.second.get("/readyz")[1]["models"][0]
    return shown


def _reason(server: ServerProcess) -> str:
    (reason,) = (each["reason"] for each in server.events() if each.get("to") == "failed")
    return str(reason)


@pytest.mark.long
def test_two_machines_answer_as_one_and_leave_together(pair: Callable[..., Pair]) -> None:
    """
    Tensor parallel over two machines answers at rank 0; the other one follows, refuses calls, and when both are told to
    end, it stays for as long as rank 0 has work for it.
    """
    both = pair("server.drain_seconds=120", tensor_parallel=2)
    follower = _until_both_serve(both)
    refused = both.second.post("/v1/completions", QUESTION)
    answers: list[tuple[int, Any]] = []
    question = {**QUESTION, "max_tokens": 64}
    asking = threading.Thread(target=lambda: answers.append(both.first.post("/v1/completions", question)))
    asking.start()
    wait_until(lambda: both.first.get("/livez")[1]["models"][0]["running"] == 1, 30)
    for server in (both.second, both.first):
        server.process.send_signal(signal.SIGTERM)
    asking.join(120)

    assert follower["state"] == "following"
    assert follower["reason"] == f"computes for rank 0 at {HERE}, which answers"
    assert refused[0] == 503
    assert f"rank 0 at {HERE}, which answers" in refused[1]["error"]["message"]
    ((status, answer),) = answers
    assert (status, answer["usage"]["completion_tokens"]) == (200, 64)
    assert (both.first.process.wait(60), both.second.process.wait(60)) == (0, 0)


@pytest.mark.faults
def test_a_follower_ends_when_rank_0_is_killed(pair: Callable[..., Pair]) -> None:
    """
    `kill -9` of rank 0 ends the process of the other machine with exit code 4 and the reason, and every rank of both.
    """
    both = pair(tensor_parallel=2)
    _until_both_serve(both)
    ranks = [*both.first.descendants(), *both.second.descendants()]
    both.first.process.kill()

    assert both.second.process.wait(30) == 4
    assert _reason(both.second) == f"rank 0 at {HERE} is gone"
    wait_until(lambda: all(has_exited(each) for each in ranks), 10)


@pytest.mark.faults
def test_rank_0_is_not_well_without_its_follower(pair: Callable[..., Pair]) -> None:
    """
    A rank that is killed there ends its process there, and here fails liveness, though nobody asked anything; the log
    says why. With `on_failure: restart` both start anew, and answer.
    """
    both = pair("models.tiny.on_failure=restart", tensor_parallel=2)
    _until_both_serve(both)
    victim = max(both.second.descendants(), key=lambda each: each.memory_info().rss)
    number = victim.pid
    victim.kill()
    wait_until(lambda: both.first.state() == "restarting", 20, both.first.log_tail)
    (reason,) = (each["reason"] for each in both.first.events() if each.get("to") == "restarting")
    _until_both_serve(both)
    again = both.first.post("/v1/completions", QUESTION)

    assert f"the node of rank 1 is gone: the engine died: process {number} ended with exit code -9" in reason
    assert again[0] == 200
    assert not psutil.pid_exists(number)


@pytest.mark.faults
def test_copies_on_two_machines_have_one_front(pair: Callable[..., Pair]) -> None:
    """Data parallel with a copy on each machine answers at rank 0 from both; without one of them it is not live."""
    both = pair(data_parallel=2)
    _until_both_serve(both)
    statuses = [both.first.post("/v1/completions", QUESTION)[0] for _ in range(8)]
    text = both.first.stream("/metrics", None).decode()
    both.second.process.kill()
    wait_until(lambda: both.first.get("/livez")[0] == 503, 20, both.first.log_tail)

    assert statuses == [200] * 8
    finished = [line for line in text.splitlines() if line.startswith("vllm:generation_tokens_total{")]
    assert {float(line.split()[-1]) > 0 for line in finished} == {True}
    assert len(finished) == 2
    assert _reason(both.first) == "the node of rank 1 is gone"
