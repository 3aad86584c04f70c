"""
A program: a lifecycle whose engine is killed over and over, and what the process has after each new start, as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path

import psutil

from appliance.config import load
from appliance.core.model import ModelRequest, Operation
from appliance.models.manager import ModelManager
from appliance.models.restart_policy import RestartPolicy
from appliance.models.state import State

CALL = ModelRequest(Operation.COMPLETION, b'{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}')


def _counts(process: psutil.Process) -> dict[str, int]:
    gc.collect()
    return {
        "processes": len(process.children(recursive=True)),
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "MiB": process.memory_info().rss >> 20,
    }


async def _die(file: Path, times: int) -> None:
    config = load(file, overrides=["models.smollm2.on_failure=restart"]).config
    manager = ModelManager(
        config, restart_policy=RestartPolicy(max_deaths=times + 1, first_pause_seconds=0.1, max_pause_seconds=0.1)
    )
    manager.start()
    (entry,), process = manager.statuses, psutil.Process()
    for restarts in range(times + 1):
        while entry.state is not State.READY or entry.restarts < restarts:
            assert entry.state is not State.FAILED, entry.reason
            await asyncio.sleep(0.1)
        await manager.handle("smollm2", CALL)
        print(json.dumps(_counts(process)), flush=True)
        max(process.children(recursive=True), key=lambda each: each.memory_info().rss).kill()
    await manager.stop()


if __name__ == "__main__":
    asyncio.run(_die(Path(sys.argv[1]), int(sys.argv[2])))
