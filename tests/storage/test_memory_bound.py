"""How much memory a fetch takes, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from storage.range_server import serving

MIB = 1 << 20

MEASURED = """
import resource, sys
from pathlib import Path
from appliance.storage import materialize
from appliance.config.storage import StorageConfig, GlobalStorageConfig, TransferConfig

def fetch(name, parallel):
    transfer = TransferConfig(parallel=parallel, chunk_bytes=8 << 20)
    settings = GlobalStorageConfig(cache_dir=Path(sys.argv[2]) / name, transfer=transfer)
    materialize(StorageConfig(uri=sys.argv[1] + name), settings, lambda *_: None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

# A small one first, so that imports and pools are not counted.
before = fetch("small.safetensors", 1)
print((fetch("large.safetensors", int(sys.argv[3])) - before) * 1024)
"""


@pytest.mark.parametrize("parallel", [4, 16])
def test_memory_is_bounded_by_requests_and_not_by_the_model(tmp_path: Path, parallel: int) -> None:
    """However large the model, a fetch holds no more than a chunk for each request under way."""
    with serving({"small.safetensors": MIB, "large.safetensors": 400 * MIB}) as server:
        command = [sys.executable, "-c", MEASURED, server.uri, str(tmp_path), str(parallel)]
        grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    assert grown < parallel * 8 * MIB
