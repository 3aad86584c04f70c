"""Engine arguments that cannot work are refused with the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from appliance.cli.options import load_config
from appliance.core.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config whose weights come through a loader of their own package."""
    file = tmp_path / "config.yaml"
    args = "engine: {args: {load_format: runai_streamer}}"
    file.write_text(f"models: [{{name: a, class: generative, storage: {{uri: /srv/model}}, {args}}}]\n")
    return file


def test_a_loader_that_is_not_installed_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is downloaded."""
    monkeypatch.setitem(sys.modules, "runai_model_streamer", None)

    with pytest.raises(ConfigError, match=r"load_format: is .*which needs the package runai_model_streamer"):
        load_config(file)


def test_a_machine_without_the_engine_does_not_judge_its_loaders(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It only checks the file."""
    monkeypatch.setitem(sys.modules, "vllm", None)

    assert load_config(file).config.models
