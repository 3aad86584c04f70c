"""The server that engine cores are forked from, for real."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from appliance.engines.vllm.fork_server import ForkServer, StartupTimings

pytestmark = pytest.mark.slow


class _Executor:
    """What the engine core is given a class of, as far as a start calls it."""

    def __init__(self) -> None:
        self._init_executor()

    def _init_executor(self) -> None:
        time.sleep(0.01)

    def determine_available_memory(self) -> int:
        return 5

    def initialize_from_config(self, configs: list[int]) -> list[int]:
        return configs

    def compile_or_warm_up_model(self) -> str:
        return "warm"


def _core(answers: Connection, executor_class: Callable[[], Any]) -> None:
    import torch

    made = executor_class()
    results = (made.determine_available_memory(), made.initialize_from_config([1]), made.compile_or_warm_up_model())
    answers.send((torch.get_num_threads(), os.environ["SAID"], results))
    raise ValueError("that was all")


def test_what_is_forked_computes_with_its_own_threads_and_tells_what_it_does() -> None:
    """
    Threads and environment are those of each engine, whatever the first one had; its parts and last words come here.
    """
    for threads in (2, 1):
        parts = StartupTimings()
        server = ForkServer(parts, {"SAID": f"for {threads}"}, threads)
        ours, theirs = server.Pipe(duplex=False)
        process = server.Process(target=_core, name="core", kwargs={"answers": theirs, "executor_class": _Executor})
        process.start()
        found = ours.recv()
        process.join(30)

        assert found == (threads, f"for {threads}", (5, [1], "warm"))
        assert server.last_error() == "ValueError: that was all"
        assert list(parts.seconds) == ["weights", "profile", "kv_cache", "warm_up"]
        assert parts.seconds["weights"] > 0
        assert "SAID" not in os.environ


def test_work_is_done_in_a_process_of_its_own() -> None:
    """What it returns comes back, and so does in words what it raises."""
    server = ForkServer(StartupTimings())

    def fail() -> None:
        raise KeyError("lost")

    assert server.compute(os.getpid) != os.getpid()
    with pytest.raises(RuntimeError, match="KeyError: 'lost'"):
        server.compute(fail)
