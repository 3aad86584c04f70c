"""Servers that are programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from appliance.core import pdeathsig_exec

START_SECONDS = 60


@contextmanager
def running(
    command: Sequence[str | Path], ready: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """
    Run a server, an absolute path and its arguments, until the end of the block; that begins when the URL `ready` gives
    any answer.

    It ends by SIGKILL: some take most of a minute to end by any other signal; and it does not outlive a killed run.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", pdeathsig_exec.__file__, str(os.getpid()), *(str(word) for word in command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
        )
        try:
            _await(process, ready, log)
            yield
        finally:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
