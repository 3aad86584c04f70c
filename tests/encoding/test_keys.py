"""The keys of an encoder's section, and encoders beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = "Paris is the capital of France."


def _vector(server: ServerProcess, model: str, **more: Any) -> Any:  # Any: an array of `(dimensions,)`
    status, answer = server.post("/v1/embeddings", {"model": model, "input": TEXT, **more})
    assert status == 200, answer
    return np.array(answer["data"][0]["embedding"])


def test_dimensions_cut_and_normalize_anew(heads_server: ServerProcess, server: ServerProcess) -> None:
    """The config's dimensions are the default, a request may ask for fewer, and either is of length 1."""
    whole = _vector(server, "minilm")

    default, asked = _vector(heads_server, "short"), _vector(heads_server, "short", dimensions=32)
    status, refused = heads_server.post("/v1/embeddings", {"model": "short", "input": TEXT, "dimensions": 385})
    _, listing = heads_server.get("/v1/models/short")

    for vector, size in ((default, 128), (asked, 32)):
        assert vector == pytest.approx(whole[:size] / np.linalg.norm(whole[:size]), abs=1e-4)
    assert (status, refused["error"]["param"]) == (400, "dimensions")
    assert listing["dimensions"] == 128


def test_pooling_and_normalize_go_over_the_models_own(heads_server: ServerProcess, minilm: Path) -> None:
    """`pooling: cls` with `normalize: false` is the first token's last hidden state, as transformers computes it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    made = AutoTokenizer.from_pretrained(minilm)(TEXT, return_tensors="pt")
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(minilm)(**made).last_hidden_state[0, 0]

    assert _vector(heads_server, "raw") == pytest.approx(expected.numpy(), abs=1e-3)


def test_a_model_that_fails_leaves_the_others_their_answers(
    serve: Callable[..., ServerProcess], heads: dict[str, Path], tmp_path: Path
) -> None:
    """It is named with its reason, the server is not ready, and the model after it answers."""
    places = {"missing": tmp_path / "nothing", "mood": heads["mood"]}
    models = [{"name": name, "class": "encoder", "storage": {"uri": str(path)}} for name, path in places.items()]
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps({"models": models}))

    server = serve(file=file)
    wait_until(
        lambda: "ready" in [model["state"] for model in (server.get("/readyz")[1] or {"models": []})["models"]], 120
    )
    status, body = server.get("/readyz")
    refused, _ = server.post("/classify", {"model": "missing", "input": TEXT})
    answered, _ = server.post("/classify", {"model": "mood", "input": TEXT})

    assert status == 503
    assert [(model["name"], model["state"]) for model in body["models"]] == [("missing", "failed"), ("mood", "ready")]
    assert "nothing" in body["models"][0]["reason"]
    assert (refused, answered) == (503, 200)


def test_a_share_too_small_for_the_weights_is_told(
    serve: Callable[..., ServerProcess], minilm: Path, tmp_path: Path
) -> None:
    """The reason has the share, the machine's memory and the weights' size, before vLLM starts."""
    model = {"name": "minilm", "class": "encoder", "storage": {"uri": str(minilm)}, "layout": {"memory_fraction": 1e-3}}
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps({"models": [model]}))

    server = serve(file=file)
    wait_until(lambda: server.state() == "failed", 120, server.log_tail)

    reason = server.get("/readyz")[1]["models"][0]["reason"]
    assert reason.startswith("layout.memory_fraction is 0.001: 0.0 GiB of this machine's ")
    assert reason.endswith("GiB; raise the fraction")


def test_a_response_repeats_the_name_that_the_client_used(server: ServerProcess, heads_server: ServerProcess) -> None:
    """In every operation of an encoder, of an alias too."""
    sides: dict[str, object] = {"query": TEXT, "documents": [TEXT]}
    bodies: list[tuple[ServerProcess, str, str, dict[str, object]]] = [
        (server, "org/vectors", "/v1/embeddings", {"input": TEXT}),
        (server, "org/vectors", "/pooling", {"input": TEXT}),
        (server, "org/vectors", "/rerank", sides),
        (server, "org/vectors", "/score", {"text_1": TEXT, "text_2": TEXT}),
        (heads_server, "org/cross", "/rerank", sides),
        (heads_server, "org/mood", "/classify", {"input": TEXT}),
    ]

    for where, name, path, body in bodies:
        assert where.post(path, {"model": name, **body})[1]["model"] == name, path
