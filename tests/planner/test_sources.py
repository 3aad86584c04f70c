"""What a plan is read from: safetensors, GGUF, a config alone, and files that are none of these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError
from appliance.planner.expected_tensors import expected_tensors
from appliance.planner.hardware import Hardware, named_hardware
from appliance.planner.model_info import ModelInfo, inspect_model

Write = Callable[..., Path]
Published = Mapping[str, Mapping[str, Any]]


def _inspect(uri: Path | str, **settings: Any) -> ModelInfo:  # Any: of each setting
    return inspect_model(StorageConfig(uri=str(uri)), GlobalStorageConfig(**settings))


def test_a_gguf_file_has_config_and_tensors(tmp_path: Path) -> None:
    """Sizes, vocabulary and tensors are in its beginning, and are those of the model it is converted to."""
    import numpy as np
    from gguf import GGUFWriter

    file = tmp_path / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_context_length(2048)
    writer.add_token_list([f"token {number}" for number in range(100)])
    shapes = {
        "token_embd": (100, 64),
        "blk.0.attn_q": (64, 64),
        "blk.0.attn_k": (16, 64),
        "blk.0.attn_v": (16, 64),
        "blk.0.attn_output": (64, 64),
        "blk.0.ffn_gate": (128, 64),
        "blk.0.ffn_up": (128, 64),
        "blk.0.ffn_down": (64, 128),
        "blk.0.attn_norm": (64,),
        "blk.0.ffn_norm": (64,),
        "output_norm": (64,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    info = _inspect(file)

    model = info.architecture
    assert (model.layers, model.hidden, model.heads, model.kv_heads, model.vocabulary) == (1, 64, 8, 2, 100)
    assert (model.max_length, model.is_tied, model.dtype) == (2048, True, "BF16")
    assert info.parameters == sum(tensor.elements for tensor in expected_tensors(model))
    assert {each.rule for each in info.groups} == {"vocabulary", "column", "keys", "row", "whole"}


def test_without_headers_tensors_are_expected_by_the_config(tmp_path: Path, published: Published) -> None:
    """Pickled weights have no header that may be read: their tensors are those that the config lets expect."""
    (tmp_path / "config.json").write_text(json.dumps(published["Llama-3.2-1B"]))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1000))

    info = inspect_model(StorageConfig(uri=str(tmp_path), allow_pickle=True), GlobalStorageConfig())

    assert info.source == "config.json alone"
    assert info.parameters == 1_235_814_400


def test_weights_in_files_outside_the_index_are_not_counted(write: Write, published: Published) -> None:
    """Files that the index does not name hold the same weights in another order."""
    folder = write(published["SmolLM2-135M"])
    names = [tensor.name for tensor in _inspect(folder).tensors]
    (folder / "consolidated.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert [tensor.name for tensor in _inspect(folder).tensors] == names


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": b"{}"}, "has no config.json"),
        ({"config.json": b"[]"}, "is not a JSON object"),
        ({"config.json": b"{"}, "is not JSON"),
        ({"config.json": b'{"hidden_size": 64}'}, "does not say what the model is"),
        ({"config.json": b"{}", "model.safetensors": b"short"}, "is not a safetensors file"),
        ({"config.json": b"{}", "model.safetensors": (2**40).to_bytes(8, "little")}, "is not a safetensors file"),
        ({"config.json": b"{}", "a.safetensors": (9).to_bytes(8, "little") + b'{"a": {}}'}, "is not a safetensors"),
        ({"model.gguf": b"GGUF\3\0\0\0" + bytes(3)}, "is not a whole GGUF file"),
        ({"model.gguf": b"GGML" + bytes(100)}, "is not a GGUF file"),
    ],
)
def test_corrupt_files_are_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    """The message names the place, the file and what is wrong with it."""
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    with pytest.raises(ArtifactCorruptError, match=message) as caught:
        _inspect(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("uri", ["pypi://name==1.0/model", "hf://owner/name"])
def test_a_storage_without_ranges_must_be_pulled(tmp_path: Path, uri: str) -> None:
    """A wheel, or anything at all where no connection is allowed, is planned once it is in the cache."""
    with pytest.raises(ArtifactNotFoundError, match="run first: appliance pull"):
        _inspect(uri, cache_dir=tmp_path, offline=uri.startswith("hf"))


def test_hardware_is_parsed_from_its_name() -> None:
    """A known name, how many there are, and memory as its driver shows it."""
    assert named_hardware("H100-80GB:8") == Hardware("h100-80gb", 8, 81559 * 2**20, is_here=False)
    assert named_hardware("l4-24gb").count == 1
    for wrong in ("h100", "h100-80gb:0", "h100-80gb:x", "h100-81gb:2"):
        with pytest.raises(ValueError, match=r"must be NAME-GBgb:COUNT|unknown kind"):
            named_hardware(wrong)
