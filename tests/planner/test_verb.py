"""`appliance plan` as people and programs use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from server_launcher import run_appliance
from server_process import environment
from storage.range_server import serving

Write = Callable[..., Path]
Published = Mapping[str, Mapping[str, Any]]
File = Callable[..., Path]


def _plan(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = environment(APPLIANCE__STORAGE__CACHE_DIR=str(file.parent / "cache"))
    return run_appliance("plan", file, *words, variables=variables)


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Writes a config of one model in the block style that people write."""

    def written(uri: str | Path, layout: str = "{}", engine: str = "{}") -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(
            "models:\n  - name: it\n    class: generative\n"
            f"    storage: {{uri: {uri}}}\n    layout: {layout}\n    engine: {engine}\n"
        )
        return path

    return written


def test_the_text_has_ranks_tokens_and_times(write: Write, file: File, published: Published) -> None:
    """The table has the weights of each kind of rank, the cache, the longest text and how many fit."""
    result = _plan(file(write(published["Llama-3.1-70B"]), "{tensor_parallel: 8}"), "--gpu", "h100-80gb:8")

    assert result.returncode == 0, result.stderr
    assert "it: llama, 70.55 billion parameters in BF16" in result.stdout
    assert "tensor_parallel 8 on 8 x h100-80gb with 79.6 GiB each" in result.stdout
    assert "tensor 0-7  16.43 GiB" in result.stdout
    assert "40,960 bytes a token" in result.stdout
    assert "longest text 131,072 tokens" in result.stdout


def test_a_layout_that_cannot_work_is_refused_with_the_nearest_that_do(
    write: Write, file: File, published: Published
) -> None:
    """Exit code 2, the place in the file, the fault, and layouts to take instead."""
    config = file(write(published["Llama-3.1-70B"]), "{tensor_parallel: 6}")

    result = _plan(config, "--gpu", "h100-80gb:8")

    assert result.returncode == 2
    assert (
        f"{config}:5:31: models[0].layout.tensor_parallel: is 6, and the model has 64 attention heads" in result.stderr
    )
    assert "nearest that work: tensor_parallel 4, tensor_parallel 8" in result.stderr
    assert "1 problem found" in result.stderr
    assert "in place of tensor_parallel 6, which cannot work" in result.stdout


def test_too_little_memory_can_be_forced(write: Write, file: File, published: Published) -> None:
    """Memory is an estimate: it refuses with exit code 2, and with `--force` only tells."""
    config = file(write(published["Llama-3.1-70B"]))

    refused, forced = _plan(config, "--gpu", "h100-80gb:1"), _plan(config, "--gpu", "h100-80gb:1", "--force")

    assert (refused.returncode, forced.returncode) == (2, 0)
    assert "needs 135.6 GiB of each device for weights and activations, and its budget is 73.3 GiB" in refused.stderr
    assert "forced: it may fail once it loads" in forced.stderr


def test_expert_parallelism_without_experts_is_refused(write: Write, file: File, published: Published) -> None:
    """No other size is a remedy for a dense model with expert parallelism."""
    result = _plan(file(write(published["Llama-3.1-8B"]), "{expert_parallel: true}"), "--gpu", "h100-80gb:8")

    assert result.returncode == 2
    assert "expert_parallel: is true, and the model has no experts; must be left out" in result.stderr


def test_sizes_that_do_not_divide_cannot_be_forced(write: Write, file: File, published: Published) -> None:
    """No estimate is at fault where heads do not divide."""
    config = file(write(published["Qwen2.5-7B"]), "{tensor_parallel: 8}")

    assert _plan(config, "--gpu", "h100-80gb:8", "--force").returncode == 2


def test_the_json_has_sizes_and_refusals(write: Write, file: File, published: Published) -> None:
    """One object for each model, with bytes, seconds and refusals."""
    config = file(write(published["Qwen2.5-7B"]), engine="{max_model_len: 32768}")

    result = _plan(config, "--gpu", "l4-24gb:1", "--format", "json")

    (plan,) = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert plan["model"] == "it"
    assert plan["parameters"] == 7_615_616_512
    assert plan["ranks"][0]["weight_bytes"] == 7_615_616_512 * 2
    assert plan["kv_token_bytes"] == 28 * 2 * 4 * 128 * 2
    assert plan["refusals"] == []


def test_an_auto_layout_has_the_fewest_devices(write: Write, file: File, published: Published) -> None:
    """`auto` takes the fewest devices that hold the model, and says so."""
    result = _plan(file(write(published["Qwen2.5-7B"]), "auto"), "--gpu", "t4-16gb:8")

    assert result.returncode == 0, result.stderr
    assert "tensor_parallel 2 on 8 x t4-16gb" in result.stdout
    assert "2 ranks are the fewest that hold it and divide its heads" in result.stdout


def test_unknown_hardware_is_refused() -> None:
    """A misspelt name is told from a known one; any memory can be named."""
    example = Path(__file__).parents[2] / "examples/proxy.yaml"

    unknown, free = _plan(example, "--gpu", "h101-80gb:8"), _plan(example, "--gpu", "any-80gb:8")

    assert unknown.returncode == 2
    assert 'did you mean "h100-80gb"?' in unknown.stderr
    assert free.returncode == 0
    assert "there is nothing to plan" in free.stdout


def test_under_a_thousandth_of_a_model_is_downloaded_for_a_plan(write: Write, file: File, published: Published) -> None:
    """Of a model on a web server, only the config and the headers are asked for, by ranges."""
    folder = write({**published["SmolLM2-135M"], "num_hidden_layers": 8})
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    whole = files["model.safetensors"]

    with serving(files) as server:
        result = _plan(file(server.uri), "--gpu", "l4-24gb:1", "--gbit", "2", "--format", "json")
        sent = server.sent

    assert result.returncode == 0, result.stderr
    (plan,) = json.loads(result.stdout)
    assert plan["source"] == "the headers of its safetensors"
    assert sent < len(whole) / 1000
    assert plan["disk_bytes"] >= len(whole)
    assert plan["timing"]["download_seconds"] == pytest.approx(len(whole) * 8 / 2e9, abs=0.2)


def test_the_startup_probe_allows_for_the_download(write: Write, file: File, published: Published) -> None:
    """The start-up probe of the container has time for the weights of 70 billion parameters to load."""
    config = file(write(published["Llama-3.1-70B"]), "{tensor_parallel: 8}")

    result = _plan(config, "--gpu", "h100-80gb:8", "--probes")

    probes = YAML(typ="safe").load(result.stdout)
    assert probes["startupProbe"]["httpGet"] == {"path": "/startupz", "port": 8080}
    assert probes["startupProbe"]["failureThreshold"] * probes["startupProbe"]["periodSeconds"] > 141 / 2 + 60
    assert probes["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_models_that_share_gpus_need_a_memory_fraction(write: Write, tmp_path: Path, published: Published) -> None:
    """Two models on the same GPU, none with a share, are refused; each on its own is not."""
    folder = write(published["SmolLM2-135M"])
    models = [{"name": name, "class": "generative", "storage": {"uri": str(folder)}} for name in "ab"]
    config = tmp_path / "two.yaml"
    config.write_text(json.dumps({"models": models}))
    apart = tmp_path / "apart.yaml"
    apart.write_text(json.dumps({"models": [m | {"layout": {"devices": [i]}} for i, m in enumerate(models)]}))

    assert "memory_fraction: is not set, and models[1] is on device 0 too" in _plan(config, "--gpu", "l4-24gb:2").stderr
    assert _plan(apart, "--gpu", "l4-24gb:2").returncode == 0


def test_a_plan_imports_no_engine(write: Write, published: Published) -> None:
    """Neither torch nor vLLM nor transformers is imported for it."""
    folder = write(published["SmolLM2-135M"])
    code = (
        "import sys; from appliance.planner.planner import *; from appliance.config.storage import *\n"
        "from appliance.planner.hardware import *; from appliance.planner.model_info import *\n"
        "from appliance.config.engine import EngineConfig; from appliance.config.layout import LayoutConfig\n"
        f"info = inspect_model(StorageConfig(uri={str(folder)!r}), GlobalStorageConfig())\n"
        "plan('it', info, LayoutConfig(), EngineRequirements(EngineConfig()), detect_hardware())\n"
        "print(*sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.split() == []


def test_the_layout_of_an_example_works_for_its_model(write: Write, published: Published) -> None:
    """Experts over the ranks of both copies, and tokens for the lengths it asks for, on the GPUs it names."""
    example = Path(__file__).parents[2] / "examples/expert-parallel.yaml"
    uri = f"models.qwen3-235b.storage.uri={write(published['Qwen3-235B-A22B'])}"

    result = _plan(example, "--gpu", "h100-80gb:8", "--set", uri, "--format", "json")

    (plan,) = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert len(plan["ranks"]) == 8
    assert plan["kv_tokens"] > 4 * plan["max_model_len"]
