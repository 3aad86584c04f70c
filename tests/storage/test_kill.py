"""A fetch killed at any moment, in a process of its own and from a real server, and the one after it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from storage.range_server import RangeServer, serving
from storage.weights import WITHOUT_TENSORS

from appliance.cli.main import main
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage import materialize

FILES = {
    "model-1.safetensors": WITHOUT_TENSORS + os.urandom(12_000_000),
    "model-2.safetensors": WITHOUT_TENSORS + os.urandom(7_000_000),
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


def pull(config: Path, log: Path) -> None:
    """The command, with the log in a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    main(["pull", str(config)])


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["storage.test_kill", "appliance.cli.pull", "appliance.storage.filesystems.http"])
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_pull_releases_its_lock_when_it_is_ended(
    processes: ForkServerContext, server: RangeServer, tmp_path: Path, number: int, code: int
) -> None:
    """The next one has nothing to recover from, and goes on where the first one was."""
    config, log = tmp_path / "config.yaml", tmp_path / "log"
    model = {"name": "a", "class": "generative", "storage": {"uri": server.uri}}
    config.write_text(json.dumps({"models": [model], "storage": {"cache_dir": str(tmp_path / "cache")}}))
    first = processes.Process(target=pull, args=(config, log))
    server.sent, server.trigger, server.at_byte = 0, SIZE // 2, lambda: os.kill(first.pid or 0, number)
    first.start()
    first.join()
    ended = log.read_text()
    second = processes.Process(target=pull, args=(config, log))
    second.start()
    second.join()

    assert (first.exitcode, second.exitcode) == (code, 0)
    assert "Traceback" not in ended
    assert "lock.recovered" not in log.read_text()
    assert server.sent < 1.05 * SIZE
