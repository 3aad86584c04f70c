"""What an encoder is for, read from its own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import LoadError
from appliance.models.encoder import Task, choose_task, read_prompts


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["BertModel"]}, Task.EMBED),
        ({"architectures": ["Qwen3ForCausalLM"]}, Task.EMBED),
        ({"architectures": None}, Task.EMBED),
        ({}, Task.EMBED),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, Task.RERANK),
        ({"architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1}, Task.RERANK),
        ({"architectures": ["BertForSequenceClassification"]}, Task.CLASSIFY),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}, Task.CLASSIFY),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"0": "O"}}, Task.TOKEN_CLASSIFY),
    ],
)
def test_the_task_is_read_from_the_models_config(tmp_path: Path, config: Any, task: Task) -> None:
    """The head decides, and where there is none the model embeds; the source names what was read."""
    (tmp_path / "config.json").write_text(json.dumps(config))

    choice = choose_task(None, tmp_path)

    assert choice.task is task
    assert choice.source.startswith("config.json: architecture ")


def test_the_config_overrides_the_models_files(tmp_path: Path) -> None:
    """A task that is written in the file needs no look at the model."""
    choice = choose_task(Task.CLASSIFY, tmp_path)

    assert (choice.task, choice.source) == (Task.CLASSIFY, "the config")


@pytest.mark.parametrize("text", [None, "{", "[]", "\ud83d"])
def test_a_config_that_cannot_be_read_is_told(tmp_path: Path, text: str | None) -> None:
    """The file is named, and what it is for."""
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass"))

    with pytest.raises(LoadError, match=r"config\.json"):
        choose_task(None, tmp_path)


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ('{"prompts": {"query": "query: ", "document": "", "odd": 3}}', {"query": "query: "}),
        ('{"prompts": null}', {}),
        ("[]", {}),
        ("{", {}),
        (None, {}),
    ],
)
def test_prompts_are_read_from_the_models_files(tmp_path: Path, text: str | None, prompts: dict[str, str]) -> None:
    """Those that have a text; a file that cannot be read has none, and the model is served without them."""
    if text is not None:
        (tmp_path / "config_sentence_transformers.json").write_text(text)

    assert read_prompts(tmp_path) == prompts
