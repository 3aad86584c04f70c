"""A server with an impossible layout says so before it fetches anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, environment, wait_until
from storage.range_server import serving

from appliance.config import load
from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.config.models import GenerativeConfig
from appliance.config.storage import GlobalStorageConfig, TransferConfig
from appliance.core.errors import StorageUnavailableError
from appliance.core.model import SINGLE_FRONT_END
from appliance.models.factory import ModelFactory
from appliance.models.fetch import fetch_artifacts
from appliance.models.vllm_model import GenerativeModel

Write = Callable[..., Path]
Published = Mapping[str, Mapping[str, Any]]


def _config(tmp_path: Path, uri: str, **layout: int) -> Path:
    model = {"name": "it", "class": "generative", "storage": {"uri": uri}, "layout": layout}
    file = tmp_path / "config.json.yaml"
    file.write_text(json.dumps({"models": [model], "storage": {"cache_dir": str(tmp_path / "cache")}}))
    return file


def test_a_local_model_is_refused_before_the_port_opens(write: Write, tmp_path: Path, published: Published) -> None:
    """Exit code 2, with the line of the file and layouts that divide."""
    file = _config(tmp_path, str(write(published["Qwen2.5-7B"])), tensor_parallel=8)

    done = subprocess.run(
        [sys.executable, "-m", "appliance", "serve", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )

    assert done.returncode == 2
    assert f"{file}:1:" in done.stderr
    assert "models[0].layout.tensor_parallel: is 8, and the model has 28 attention heads" in done.stderr
    assert "those that divide: tensor_parallel 4, tensor_parallel 2" in done.stderr


def test_a_remote_model_is_refused_before_its_download(write: Write, tmp_path: Path, published: Published) -> None:
    """The model fails with the reason, and of the weights not a byte was asked for."""
    config = (write(published["Qwen2.5-7B"]) / "config.json").read_bytes()
    with serving({"config.json": config, "model.safetensors": 1 << 20}) as store:
        server = ServerProcess(_config(tmp_path, store.uri, tensor_parallel=8), tmp_path / "server.log")
        try:
            wait_until(lambda: server.state() == "failed", 60, server.log_tail)
            _, body = server.get("/readyz")
        finally:
            server.process.kill()
            server.process.wait(30)
        sent = store.sent

    assert "layout.tensor_parallel is 8, and the model has 28 attention heads" in body["models"][0]["reason"]
    assert sent < 1 << 16


def test_an_unavailable_store_does_not_refuse_the_layout(tmp_path: Path) -> None:
    """The model is fetched, or fails to be, as it would without a plan."""
    (model_config,) = load(_config(tmp_path, "http://127.0.0.1:9/model/", tensor_parallel=8), environ={}).config.models
    settings = GlobalStorageConfig(cache_dir=tmp_path / "cache", transfer=TransferConfig(retries=0))

    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1:9"):
        fetch_artifacts(ModelFactory(), model_config, settings, lambda *_: None)


def test_an_auto_layout_is_chosen_by_the_files(write: Write, published: Published) -> None:
    """On a machine without GPUs `auto` is one rank; a layout of the file stays what it is."""
    folder = write(published["SmolLM2-135M"])
    said = {"name": "it", "class": "generative", "storage": {"uri": str(folder)}}

    chosen, kept = (
        GenerativeModel(GenerativeConfig.model_validate({**said, **more}), EngineConfig(), SINGLE_FRONT_END)
        for more in ({"layout": "auto"}, {"layout": {"tensor_parallel": 3}})
    )

    assert chosen.resolve_layout(folder) == LayoutConfig()
    assert kept.resolve_layout(folder) == LayoutConfig(tensor_parallel=3)
