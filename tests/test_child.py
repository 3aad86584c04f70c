"""A process of the engine that does not get far."""

from __future__ import annotations

import json
import subprocess
import sys

BREAKS = """
import json, multiprocessing
from appliance.engines.vllm.fork_server import _run

def target():
    raise ValueError("no memory\\nfor the cache")

context = multiprocessing.get_context("fork")
causes, confess = context.Pipe(duplex=False)
process = context.Process(target=_run, args=({}, None, confess, target))
process.start()
process.join()
print(json.dumps([process.exitcode, causes.recv()]))
"""


def test_it_says_why_it_broke_and_writes_past_no_log() -> None:
    """Its parent hears the reason; what is no line of the log is not written at all."""
    done = subprocess.run([sys.executable, "-c", BREAKS], capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(done.stdout) == [1, "ValueError: no memory for the cache"]
    assert done.stderr == ""
