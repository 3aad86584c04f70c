"""Children that do what children should not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psutil
import pytest

from appliance.core import child_process


class StopError(Exception):
    """What a listener raises to stop the work."""


def python(script: str) -> list[str]:
    """A command that runs a script."""
    return [sys.executable, "-c", script]


def test_every_line_is_heard_and_the_last_are_kept() -> None:
    """Both streams, in order, whole lines, whatever ends them."""
    heard: list[str] = []

    ended = child_process.run(
        python("import sys; print('a', flush=True); sys.stderr.write('b\\rc\\n'); print('d', end='')"), {}, heard.append
    )
    assert [line for line in heard if line] == ["a", "b", "c", "d"]
    assert ended == child_process.ChildResult(0, ("a", "b", "c", "d"))


def test_a_childs_end_is_told() -> None:
    """An exit status is positive and a signal negative."""
    assert child_process.run(python("raise SystemExit(7)"), {}, lambda _: None).status == 7
    assert child_process.run(python("import os; os.kill(os.getpid(), 9)"), {}, lambda _: None).status == -9


def test_a_child_gets_what_it_is_given_over_our_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our environment stays visible, and what the caller sets goes first."""
    monkeypatch.setenv("OURS", "1")
    monkeypatch.setenv("BOTH", "ours")

    ended = child_process.run(
        python("import os; print(os.environ['OURS'], os.environ['BOTH'])"), {"BOTH": "theirs"}, lambda _: None
    )
    assert ended.lines == ("1 theirs",)


@pytest.mark.parametrize(
    "script",
    [
        "import time; print('ready', flush=True); time.sleep(60)",
        "import os, time; print('ready', flush=True); os.close(1); os.close(2); time.sleep(60)",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
        "import subprocess; print('ready', flush=True); subprocess.run(['sleep', '60'])",
        "import time\nwhile True: print('ready', flush=True)",
    ],
    ids=["silent", "closes its output", "ignores SIGTERM", "has a child", "never stops talking"],
)
def test_a_stopped_child_is_gone_with_its_children(offspring: Callable[[], list[psutil.Process]], script: str) -> None:
    """When the listener raises, nothing of the child is left, whatever it does."""
    heard: list[str] = []
    family: list[psutil.Process] = []

    def stop(line: str) -> None:
        heard.append(line)
        if "ready" in heard and (line == "" or len(heard) > 1000):
            family.extend(offspring())
            raise StopError

    with pytest.raises(StopError):
        child_process.run(python(script), {}, stop)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert family
    assert alive == []


def test_a_grandchild_that_keeps_the_pipe_open_is_not_waited_for() -> None:
    """The end of the child is the end, also while a process it left behind holds its output."""
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"

    begun = time.monotonic()
    ended = child_process.run(python(script), {}, lambda _: None)
    psutil.Process(int(ended.lines[0])).kill()
    assert ended.status == 0
    assert time.monotonic() - begun < 20


def test_a_child_has_nobody_to_ask() -> None:
    """It has no terminal and no input, so a question for a password fails and does not hang."""
    script = "import os, sys; print(repr(sys.stdin.read())); open('/dev/tty')"

    ended = child_process.run(python(script), {}, lambda _: None)
    assert ended.lines[0] == "''"
    assert ended.status == 1
