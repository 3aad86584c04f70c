"""The real encoders that the tests of this room share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from server_process import ServerProcess

from appliance.config import load
from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import ModelFactory

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

LABELS = ["anger", "joy", "sadness"]
TAGS = ["O", "B-PLACE", "I-PLACE", "B-NAME", "I-NAME"]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    (model_config,) = load(EXAMPLES / "embeddings.yaml").config.models
    return ModelFactory().materialize(model_config, GlobalStorageConfig(), lambda *_: None)["model"]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedding model of the examples, which has an alias."""
    log = tmp_path_factory.mktemp("encoder") / "server.log"
    aliases = "models.minilm.aliases=[text-embedding-3-small, org/vectors]"
    served = ServerProcess(EXAMPLES / "embeddings.yaml", log, aliases).wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="package")
def heads(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> dict[str, Path]:
    """
    Small BERTs with made-up weights and MiniLM's tokenizer: a cross-encoder, a classifier, a classifier of tokens.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    # vLLM has no attention on the CPU for heads smaller than 32.
    shape: dict[str, Any] = {
        "vocab_size": 30522,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        # Far from nothing, so that answers differ by more than rounding.
        "initializer_range": 0.3,
    }
    kinds = {
        "cross": (BertForSequenceClassification, ["relevance"]),
        "mood": (BertForSequenceClassification, LABELS),
        "tags": (BertForTokenClassification, TAGS),
    }
    root = tmp_path_factory.mktemp("heads")
    for seed, (name, (kind, labels)) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        config = BertConfig(**shape, id2label=dict(enumerate(labels)), label2id={v: k for k, v in enumerate(labels)})
        kind(config).save_pretrained(root / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(minilm / file, root / name)
    return {name: root / name for name in kinds}


@pytest.fixture(scope="package")
def heads_server(
    tmp_path_factory: pytest.TempPathFactory, heads: dict[str, Path], minilm: Path
) -> Iterator[ServerProcess]:
    """All three in one appliance, their tasks read from their own files, and MiniLM twice, with keys of its own."""
    folder = tmp_path_factory.mktemp("heads-server")
    models: list[dict[str, Any]] = [
        {"name": name, "aliases": [f"org/{name}"], "class": "encoder", "storage": {"uri": str(path)}}
        for name, path in heads.items()
    ]
    own: dict[str, dict[str, Any]] = {"short": {"dimensions": 128}, "raw": {"pooling": "cls", "normalize": False}}
    for name, keys in own.items():
        models.append({"name": name, "class": "encoder", "storage": {"uri": str(minilm)}, **keys})
    file = folder / "heads.yaml"
    file.write_text(json.dumps({"models": models}))
    served = ServerProcess(file, folder / "server.log").wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()
