"""The real engine that the tests of answers share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_process import ServerProcess

from appliance.config import load
from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import ModelFactory

HIDDEN, LAYERS, RANK = 576, 30, 8  # SmolLM2-135M


@pytest.fixture(scope="session")
def smollm2(chat_file: Path) -> Path:
    """The directory of SmolLM2's safetensors."""
    (model_config,) = load(chat_file).config.models
    return ModelFactory().materialize(model_config, GlobalStorageConfig(), lambda *_: None)["model"]


@pytest.fixture
def divisible(smollm2: Path, tmp_path: Path) -> Path:
    """A made-up small model whose heads divide by two, without weights: vLLM makes them up."""
    folder = tmp_path / "model"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    small = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config | small | {"head_dim": 64, "intermediate_size": 512}))
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter in PEFT's format that changes every answer: made-up weights, far from zero."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapter")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 64,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    layers = [f"base_model.model.model.layers.{layer}.self_attn.q_proj" for layer in range(LAYERS)]
    weights = {f"{layer}.lora_A.weight": torch.randn(RANK, HIDDEN) for layer in layers}
    weights |= {f"{layer}.lora_B.weight": torch.randn(HIDDEN, RANK) for layer in layers}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, chat_file: Path, adapter: Path) -> Iterator[ServerProcess]:
    """The embedded default with tool calls, an adapter, and aliases: one has a slash, one changes requests."""
    adapters = json.dumps([{"name": "wild", "storage": {"uri": str(adapter)}}])
    served = ServerProcess(
        chat_file,
        tmp_path_factory.mktemp("server") / "server.log",
        "models.smollm2.tool_call_parser=hermes",
        # Said outright, it is the same however much memory other programs leave.
        "models.smollm2.engine.kv_cache_memory_bytes=1073741824",
        "models.smollm2.engine.structured_outputs.compile_seconds=1",
        "models.smollm2.aliases=[gpt-4o-mini, org/small, {name: brief, request: {defaults: {max_tokens: 2}}}]",
        f"models.smollm2.adapters={adapters}",
        "responses={store: memory}",
        f"batches={{directory: {tmp_path_factory.mktemp('batches') / 'store'}, start: always}}",
    ).wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client
