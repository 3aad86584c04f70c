"""A fetch killed at any moment, in a process of its own and from a real server, and the one after it."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from storage.range_server import RangeServer, serving

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage import materialize

FILES = {
    "model-1.safetensors": os.urandom(12_000_000),
    "model-2.safetensors": os.urandom(7_000_000),
    "tokenizer.json": os.urandom(900_000),
    "config.json": b"{}",
}
SIZE = sum(map(len, FILES.values()))

# Chosen anew in each run; the name of the test tells which it was.
OFFSETS = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).sample(range(1, SIZE), 20)
FEW = 3


def fetch(uri: str, cache: Path) -> None:
    """What the process does that is killed."""
    materialize(StorageConfig(uri=uri), GlobalStorageConfig(cache_dir=cache), lambda *_: None)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["storage.test_kill", "appliance.storage.filesystems.http"])
    return context


@pytest.fixture(scope="module")
def server() -> Iterator[RangeServer]:
    """A web server with a model of 20 MB."""
    with serving(FILES) as server:
        yield server


@pytest.mark.parametrize(
    "offset", [*OFFSETS[:FEW], *(pytest.param(each, marks=pytest.mark.long) for each in OFFSETS[FEW:])]
)
def test_a_killed_fetch_costs_no_more_than_a_twentieth(
    processes: ForkServerContext, server: RangeServer, tmp_path: Path, offset: int
) -> None:
    """
    Killed when a random byte was sent, it goes on, is right, and all that was sent is at most 1.05 times the model.
    """
    first = processes.Process(target=fetch, args=(server.uri, tmp_path))
    server.sent, server.trigger, server.at_byte = 0, offset, first.kill
    first.start()
    first.join()
    assert first.exitcode == -9
    second = processes.Process(target=fetch, args=(server.uri, tmp_path))
    second.start()
    second.join()

    assert second.exitcode == 0
    (artifact,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert {path.name: path.read_bytes() for path in (artifact / "files").iterdir()} == FILES
    assert server.sent < 1.05 * SIZE


def test_two_processes_fetch_once(processes: ForkServerContext, server: RangeServer, tmp_path: Path) -> None:
    """Both end well, and the store has served the model one time."""
    server.sent, server.trigger = 0, None
    both = [processes.Process(target=fetch, args=(server.uri, tmp_path)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()

    assert [each.exitcode for each in both] == [0, 0]
    assert server.sent < 1.01 * SIZE


def test_who_waits_takes_over_from_a_killed_one(
    processes: ForkServerContext, server: RangeServer, tmp_path: Path
) -> None:
    """The lock goes with its owner, and what it had fetched is taken over, too."""
    both = [processes.Process(target=fetch, args=(server.uri, tmp_path)) for _ in range(2)]
    server.sent, server.trigger, server.at_byte = 0, SIZE // 2, both[0].kill
    both[0].start()
    while server.sent < SIZE // 10:
        both[0].join(0.001)
    both[1].start()
    for each in both:
        each.join()

    assert [each.exitcode for each in both] == [-9, 0]
    assert server.sent < 1.05 * SIZE
