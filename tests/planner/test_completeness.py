"""Models that are not complete are told of before an engine starts: by `validate --deep`, `pull` and `serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from server_launcher import run_appliance
from storage.fake_hub import Hub, serving
from structlog.testing import capture_logs

from appliance.config.models import MODEL_CONFIGS, GenerativeConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactCorruptError
from appliance.models.factory import ModelFactory
from appliance.models.fetch import fetch_artifacts
from appliance.planner.completeness import check_files

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def safetensors(tensor: str = "a", size: int = 64) -> bytes:
    """A file with one tensor."""
    header = json.dumps({tensor: {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def model() -> dict[str, bytes]:
    """All files of a model with two shards."""
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 128,
    }
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}).encode(),
        **{shard: safetensors(tensor) for tensor, shard in zip("ab", SHARDS, strict=True)},
    }


INCOMPLETE = [
    (
        {SHARDS[1]: None},
        r"model\.safetensors\.index\.json names model-00002-of-00002\.safetensors, which the model does",
    ),
    (
        {SHARDS[0]: safetensors()[:-10]},
        r"model-00001-of-00002\.safetensors .*it has 54 bytes of tensors, and 64 by its",
    ),
    ({"tokenizer.json": None}, "has no tokenizer, such as tokenizer.json"),
    (dict.fromkeys([name for name in model() if name != "config.json"]), "has no weights, which are .*check the URI"),
    (
        {"model.safetensors.index.json": None, **dict.fromkeys(SHARDS), "text/model.safetensors": safetensors()},
        "has no weights, .* directory text has some",
    ),
]


def changed(changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """The model with files replaced, or without them."""
    return {name: data for name, data in {**model(), **changes}.items() if data is not None}


def write(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files, and a config beside them."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    config = directory.parent / "config.yaml"
    config.write_text(f"models: [{{name: a, class: generative, storage: {{uri: {directory}}}}}]\n")
    return config


def fetch(uri: object, cache: Path, **more: object) -> Mapping[str, Path]:
    """What `serve` does before it starts an engine."""
    given = {"name": "a", "class": "generative", "storage": {"uri": str(uri)}, **more}
    config = MODEL_CONFIGS[str(given["class"])].model_validate(given)
    return fetch_artifacts(ModelFactory(), config, GlobalStorageConfig(cache_dir=cache), lambda *_: None).paths


@pytest.mark.parametrize(("changes", "fault"), INCOMPLETE)
def test_an_incomplete_model_is_not_served(tmp_path: Path, changes: Mapping[str, bytes | None], fault: str) -> None:
    """Nor loaded for minutes first."""
    write(tmp_path / "model", changed(changes))

    with pytest.raises(ArtifactCorruptError, match=fault):
        fetch(tmp_path / "model", tmp_path / "cache")


def test_an_incomplete_model_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its store lists is enough to see that a shard is missing."""
    with serving() as hub:
        _use(hub, monkeypatch, tmp_path)
        hub.repository("owner/model").commit(changed({SHARDS[1]: None}))
        with pytest.raises(ArtifactCorruptError, match="which the model does not have"):
            fetch("hf://owner/model", tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*/files"))

        hub.repository("owner/model").commit(model())
        assert fetch("hf://owner/model", tmp_path / "cache")["model"].is_dir()


@pytest.mark.parametrize("class_", ["generative", "encoder"])
def test_a_lone_config_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_: str) -> None:
    """A URI of one file that is no weights is told of before it is fetched, and never loaded for minutes."""
    with serving() as hub:
        _use(hub, monkeypatch, tmp_path)
        hub.repository("owner/model").commit(model())
        with pytest.raises(ArtifactCorruptError, match="has no weights"):
            fetch("hf://owner/model@main/config.json", tmp_path / "cache", **{"class": class_})
        assert not list((tmp_path / "cache").glob("*/files"))


@pytest.mark.parametrize(
    ("files", "more"),
    [
        ({"model.gguf": b""}, {}),
        ({"pytorch_model.bin": b""}, {"allow_pickle": True}),
        ({"params.json": b"{}", "consolidated.safetensors": safetensors()}, {}),
    ],
)
def test_other_weights_are_weights(tmp_path: Path, files: Mapping[str, bytes], more: Mapping[str, object]) -> None:
    """GGUF, pickles where they are allowed, and the file of Mistral's own format."""
    write(tmp_path / "model", files)
    config = GenerativeConfig.model_validate(
        {"name": "a", "class": "generative", "storage": {"uri": str(tmp_path / "model"), **more}}
    )

    assert check_files(config, config.storage, GlobalStorageConfig()) == ()


def _use(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("changes", "more", "events"),
    [
        ({}, {}, []),
        ({"tokenizer_config.json": b"{}"}, {}, ["model.incomplete"]),
        ({"tokenizer_config.json": None}, {}, ["model.incomplete"]),
        ({"tokenizer_config.json": b"{}"}, {"chat_template": "{{ messages }}"}, []),
        ({"tokenizer_config.json": b"{}", "chat_template.jinja": b"{{ messages }}"}, {}, []),
    ],
)
def test_a_model_without_a_chat_template_is_told_of(
    tmp_path: Path, changes: Mapping[str, bytes | None], more: dict[str, object], events: list[str]
) -> None:
    """It completes texts all the same."""
    write(tmp_path / "model", changed(changes))

    with capture_logs() as logs:
        fetch(tmp_path / "model", tmp_path / "cache", **more)
    assert [log["event"] for log in logs] == events


@pytest.mark.parametrize(
    "tokenizer", ["tokenizer.model", "vocab.txt", "tekken.json", "qwen.tiktoken", "tokenization_x.py"]
)
def test_any_tokenizer_will_do(tmp_path: Path, tokenizer: str) -> None:
    """There are many kinds of them."""
    write(tmp_path / "model", changed({"tokenizer.json": None, tokenizer: b"x"}))

    assert fetch(tmp_path / "model", tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "fault"), INCOMPLETE[:1])
def test_validate_and_pull_say_what_is_missing(tmp_path: Path, changes: Mapping[str, bytes | None], fault: str) -> None:
    """With the location in the file, and the exit code of a store whose contents are broken."""
    file = write(tmp_path / "model", changed(changes))
    deep, pull = run_appliance("validate", "--deep", file), run_appliance("pull", file)

    assert (deep.returncode, pull.returncode) == (16, 16)
    assert "config.yaml:1:54: models[0].storage.uri: cannot be read" in deep.stdout
    assert "names model-00002-of-00002.safetensors" in deep.stdout
    assert "names model-00002-of-00002.safetensors" in pull.stderr


@pytest.mark.slow
def test_validate_and_pull_warn_of_a_missing_template(tmp_path: Path) -> None:
    """The file is good, and the model is there."""
    file = write(tmp_path / "model", changed({"tokenizer_config.json": b"{}"}))
    deep, pull = run_appliance("validate", "--deep", file), run_appliance("pull", file)

    assert (deep.returncode, pull.returncode) == (0, 0)
    assert "warning: " in deep.stdout
    assert "it has no chat template" in deep.stdout
    assert "it has no chat template" in pull.stderr
