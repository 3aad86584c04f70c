"""`appliance pull --explain`: from where, as whom, which files, and what is here; nothing is fetched for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from storage.fake_hub import Hub, Repository
from storage.weights import WITHOUT_TENSORS

from appliance.cli.pull import explain_models, pull_models
from appliance.config import Config, load
from appliance.core.errors import StorageError
from appliance.storage import Cache

FILES = {
    "config.json": b"{}",
    "model.safetensors": WITHOUT_TENSORS + b"w" * 990,
    "pytorch_model.bin": b"p" * 1000,
    ".gitattributes": b"",
}

Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path, cache: Cache) -> Read:
    """Loads a config with one model, whose storage has these keys."""

    def read(uri: str, **storage: object) -> Config:
        model = {"name": "a", "class": "generative", "storage": {"uri": uri, **storage}}
        file = tmp_path / "config.yaml"
        storage = {"cache_dir": str(cache.root), "transfer": {"retries": 0}}
        file.write_text(json.dumps({"models": [model], "storage": storage}))
        return load(file).config

    return read


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_store_is_asked_and_nothing_is_fetched(
    read: Read, hub: Hub, cache: Cache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place with its commit, which credential and never its value, what comes, and what does not and why."""
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    hub.repositories["org/model"] = Repository()
    commit = hub.repositories["org/model"].commit(FILES)
    explain_models(read("hf://org/model"))
    printed = capsys.readouterr().out

    assert printed.splitlines() == [
        "a model",
        "  uri        hf://org/model",
        f"  source     hf://org/model@{commit}",
        "  credential HF_TOKEN",
        f"  revision   {commit}",
        "  files      2 files with 1.0 kB",
        "  left out   .gitattributes: is bookkeeping of git or the hub",
        "  left out   pytorch_model.bin: is the same weights as the safetensors beside it",
        "  here       no",
    ]
    assert "s3cret" not in printed
    assert not cache.root.exists()


def test_what_is_here_is_said_where(read: Read, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """After a pull the last line is the directory that pull printed."""
    hub.repositories["org/model"] = Repository()
    hub.repositories["org/model"].commit(FILES)
    pull_models(read("hf://org/model"))
    path = next(line for line in _lines(capsys) if line.startswith("a model: ")).removeprefix("a model: ")
    explain_models(read("hf://org/model"))

    assert _lines(capsys)[-1] == f"  here       {path}"


def test_offline_nobody_is_asked(read: Read, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """What the cache knows is said, and no request is made."""
    hub.repositories["org/model"] = Repository()
    commit = hub.repositories["org/model"].commit(FILES)
    config = read("hf://org/model")
    pull_models(config)
    capsys.readouterr()
    before = len(hub.requests)
    explain_models(
        config.model_copy(update={"storage": config.storage.model_copy(update={"offline": True})}),
    )

    assert _lines(capsys)[2:5] == [
        f"  source     hf://org/model@{commit}",
        "  credential none: offline",
        "  files      2 files with 1.0 kB",
    ]
    assert len(hub.requests) == before


def test_what_is_used_in_place_is_counted(read: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path needs no credential and no cache."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes(b"{}")
    explain_models(read(str(tmp_path / "model")))

    assert _lines(capsys)[3:] == [
        "  credential none: the files are local",
        "  files      1 file with 2 bytes",
        f"  here       {tmp_path}/model",
    ]


def test_a_signed_url_is_shown_without_its_signature(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in what is explained nor in what goes wrong."""
    with pytest.raises(StorageError, match="http://127") as caught:
        explain_models(read("http://127.0.0.1:1/model.gguf?sig=s3cret", digest="0" * 64))

    assert "s3cret" not in str(caught.value) + capsys.readouterr().out
