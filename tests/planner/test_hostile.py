"""
Model files with numbers and sizes that no model has: told by file, key and limit, at once and without a traceback.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_launcher import run_appliance

from appliance.config.layout import LayoutConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError, LoadError
from appliance.models.encoder import choose_task
from appliance.planner import weight_sharding
from appliance.planner.model_config import MAX_EXPERTS, Architecture
from appliance.planner.model_info import inspect_model
from appliance.planner.safetensors_header import TensorInfo
from appliance.planner.weight_sharding import group_tensors, weight_bytes_by_rank

Published = Mapping[str, Mapping[str, Any]]

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

SMALL: Mapping[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}

CONFIGS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; must be between 1 and 4096"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers is -1; must be between 1 and 4096"),
    "experts": ({"num_experts": 10**9}, "num_experts is 1000000000; must be between 1 and 16384"),
    "product": ({"num_hidden_layers": 4096, "num_experts": 16384}, "has 201338880 tensors; must be at most 1000000"),
    "width": (
        {"hidden_size": 10**400},
        "hidden_size is a number of more than 64 bits; must be between 1 and 2147483648",
    ),
    "infinite": (
        {"rope_scaling": {"factor": float("inf")}},
        "the factor of rope_scaling must be a number between 0 and 1048576",
    ),
    "true": ({"num_hidden_layers": True}, "num_hidden_layers is true; must be between 1 and 4096"),
    "a text": ({"num_hidden_layers": "2"}, 'num_hidden_layers is "2"; must be between 1 and 4096'),
    "huge": ({"num_hidden_layers": 1e308}, r"num_hidden_layers is 1e\+308; must be between 1 and 4096"),
    "none": ({"num_attention_heads": 0}, "num_attention_heads is 0; must be between 1 and 2147483648"),
    "name": ({"architectures": [1]}, r"architectures is \[1\]; must be a list of names"),
    "no list": ({"architectures": "A"}, 'architectures is "A"; must be a list of names'),
    "quantized": ({"quantization_config": [1]}, "quantization_config is no mapping; must be one"),
    "words": ({"mlp_only_layers": ["a", {}], "num_experts": 2}, "unhashable"),
}


def _inspect(folder: Path) -> object:
    return inspect_model(StorageConfig(uri=str(folder)), GlobalStorageConfig())


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_with_invalid_numbers_is_refused(tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    """Before anything as large as the number says is made."""
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **changes}))
    before = psutil.Process().memory_info().rss

    with pytest.raises(ArtifactCorruptError, match=f"config.json.*{message}"):
        _inspect(tmp_path)
    assert psutil.Process().memory_info().rss - before < 2**28


HEADERS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "dimensions": ({"a": ([9999999999] * 2000, 0, 8)}, "the shape of the tensor 'a' must be whole numbers"),
    "negative": ({"a": ([-5, 3], 0, 8)}, "the shape of the tensor 'a' must be whole numbers"),
    "fraction": ({"a": ([1.5], 0, 8)}, "the shape of the tensor 'a' must be whole numbers"),
    "backwards": ({"a": ([4], 0, -60)}, "the data_offsets of the tensor 'a' are 0 and -60; must be 0 and 8"),
    "overlap": ({"a": ([4], 0, 8), "b": ([4], 4, 12)}, "the data_offsets of the tensor 'b' are 4 and 12; must be 8"),
    "hole": ({"a": ([4], 0, 8), "b": ([4], 12, 20)}, "the data_offsets of the tensor 'b' are 12 and 20; must be 8"),
    "past the end": ({"a": ([400], 0, 800)}, "it has 64 bytes of tensors, and 800 by its header"),
    "control character": ({"\x1b[31m": ([-1], 0, 8)}, r"the tensor '\\x1b\[31m'"),
}


@pytest.mark.parametrize(("tensors", "message"), HEADERS.values(), ids=HEADERS)
def test_a_header_with_invalid_tensors_is_refused(
    tmp_path: Path, tensors: Mapping[str, tuple[list[float], int, int]], message: str
) -> None:
    """By the name of the tensor, before anything is counted."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        for name, (shape, start, end) in tensors.items()
    }
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(64))

    with pytest.raises(ArtifactCorruptError, match=message):
        _inspect(tmp_path)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf(value: bytes, tensors: int = 0, values: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + _text("a.b") + value


GGUFS: Mapping[str, tuple[bytes, str]] = {
    "array": (_gguf(struct.pack("<IIQ", 9, 10, 45 * 2**30)), "has 48318382080 elements of a list"),
    "texts": (_gguf(struct.pack("<IIQ", 9, 8, 2**60)), "elements of a list; must be at most 4000000"),
    "text": (_gguf(struct.pack("<IQ", 8, 45 * 2**30)), "bytes before its weights; must be at most 268435456"),
    "nested": (_gguf(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000), "lists in lists; must be at most 4"),
    "tensors": (_gguf(b"", tensors=2**60), "tensors; must be at most 1000000"),
    "type": (_gguf(struct.pack("<I", 77)), "it has a value of type 77, which the format does not know"),
    "no text": (_gguf(struct.pack("<IQ", 8, 1) + b"\xff"), "it has a text that is not UTF-8"),
    "no layers": (_gguf(struct.pack("<IB", 0, 1)), "has no .block_count; must be a whole number of at least 1"),
    "values": (_gguf(b"", values=2**60), "values; must be at most 65536"),
}


@pytest.mark.parametrize(("raw", "message"), GGUFS.values(), ids=GGUFS)
def test_a_gguf_file_with_invalid_sizes_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    """Also where the file is as large as it says: holes cost nothing to write."""
    with (tmp_path / "model.gguf").open("wb") as file:
        file.write(raw)
        file.truncate(46 * 2**30)

    with pytest.raises(ArtifactCorruptError, match=f"model.gguf .*{message}"):
        _inspect(tmp_path)


def test_a_gguf_file_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    """What follows may mean anything."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 99, 0, 0))

    with pytest.raises(ArtifactCorruptError, match="GGUF version 99 is not known"):
        _inspect(tmp_path)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("config.json", b'{"hidden_size": 1' + b"0" * 5000 + b"}", "not JSON .it has a number of thousands of digits"),
        ("config.json", DEEP, "nested too deeply"),
        ("config.json", b" " * (17 * 2**20), "config.json cannot be read: it has more than 16777216 bytes"),
        ("model.safetensors", len(DEEP).to_bytes(8, "little") + DEEP, "nested too deeply"),
        ("model.safetensors.index.json", DEEP, "nested too deeply"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": []}}', "has no weight_map"),
    ],
)
def test_a_file_with_invalid_json_is_refused(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    """Nested without an end, larger than any, or of other types than the format has."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    for each in "ab":
        (tmp_path / f"{each}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / name).write_bytes(raw)

    with pytest.raises(ArtifactCorruptError, match=f"{name}.*{message}|{message}"):
        _inspect(tmp_path)


def test_an_encoder_with_invalid_json_fails_to_load(tmp_path: Path) -> None:
    """What its task is cannot be known."""
    (tmp_path / "config.json").write_bytes(DEEP)

    with pytest.raises(LoadError, match="nested too deeply"):
        choose_task(None, tmp_path)


def test_the_command_line_names_a_corrupt_file_with_its_exit_code(tmp_path: Path) -> None:
    """`plan` ends with 16, and `validate --deep` too, without a traceback."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**SMALL, "num_hidden_layers": 10**9}))
    file = tmp_path / "config.yaml"
    file.write_text(f"models:\n  - name: m\n    class: generative\n    storage: {{uri: {model}}}\n")
    for words in (["plan"], ["validate", "--deep"]):
        done = run_appliance(*words, file)

        assert done.returncode == 16, done.stderr
        assert "num_hidden_layers is 1000000000" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_a_plan_escapes_control_characters(tmp_path: Path) -> None:
    """A model's name of its architecture is any text."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**SMALL, "architectures": ["\x1b[31mRED\x07"]}))
    file = tmp_path / "config.yaml"
    file.write_text(f"models:\n  - name: m\n    class: generative\n    storage: {{uri: {model}}}\n")

    done = run_appliance("plan", file)

    assert r"m: \x1b[31mRED\x07, " in done.stdout, done.stderr


def test_an_error_escapes_control_characters(tmp_path: Path) -> None:
    """Also where it quotes a model's files."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _gguf_name("\x1b[31m"))
    file = tmp_path / "config.yaml"
    file.write_text(f"models:\n  - name: m\n    class: generative\n    storage: {{uri: {model}}}\n")
    for words in (["plan"], ["validate", "--deep"]):
        done = run_appliance(*words, file)

        assert r"has no \x1b[31m.block_count" in done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr


def _gguf_name(architecture: str) -> bytes:
    return _text("general.architecture") + struct.pack("<I", 8) + _text(architecture)


def test_a_tensor_with_too_many_experts_is_not_split_into_experts() -> None:
    """Nothing is made for each of them."""
    model = Architecture({**SMALL, "num_experts": 8})
    tensors = [TensorInfo("model.layers.0.mlp.experts.gate_up_proj", "BF16", (10**9, 64, 64))]
    groups = group_tensors(tensors, model)

    assert not groups[0].experts
    assert weight_bytes_by_rank(groups, model, LayoutConfig(), "BF16")
    assert MAX_EXPERTS < 10**9


def test_many_tensors_are_classified_by_names_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """300,000 tensors have three plain names, and each of these is looked at once."""
    model = Architecture({**SMALL, "num_hidden_layers": 60, "num_experts": 1700})
    names = ("gate_proj", "up_proj", "down_proj")
    tensors = [
        TensorInfo(f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight", "BF16", (64, 64))
        for layer in range(60)
        for expert in range(1700)
        for name in names
    ]

    weight_sharding._rule.cache_clear()
    groups = group_tensors(tensors, model)

    assert weight_sharding._rule.cache_info().misses == len(names)
    assert {group.rule for group in groups} == {"column", "row"}
    assert sum(group.count * len(group.experts) for group in groups) == len(tensors)
