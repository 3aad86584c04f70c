"""What an encoder is for: what the config says, else what the model's own files say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from appliance.core.errors import LoadError
from appliance.storage import bounded_json


class Task(StrEnum):
    """One thing encoders are trained for."""

    EMBED = "embed"
    RERANK = "rerank"
    CLASSIFY = "classify"
    TOKEN_CLASSIFY = "token_classify"  # noqa: S105 - tokens of text


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """A task, and what it was chosen by."""

    task: Task
    source: str


def choose(wanted: Task | None, artifact: Path) -> TaskChoice:
    """The task of the model in the directory `artifact`.

    A head that classifies makes it a classifier, and one with a single label scores: that is a reranker.
    Everything else embeds.

    Raises:
        LoadError: there is no ``config.json`` that can be read.
    """
    if wanted is not None:
        return TaskChoice(wanted, "the model's section")
    config = _read(artifact / "config.json")
    architecture = next(iter(config.get("architectures") or ()), "none")
    source = f"config.json: architecture {architecture}"
    if architecture.endswith("ForTokenClassification"):
        return TaskChoice(Task.TOKEN_CLASSIFY, source)
    if architecture.endswith("ForSequenceClassification"):
        labels = _labels(config)
        return TaskChoice(
            Task.RERANK if labels == 1 else Task.CLASSIFY, f"{source}, {labels} label{'s'[: labels != 1]}"
        )
    return TaskChoice(Task.EMBED, source)


def _read(file: Path) -> dict[str, Any]:  # Any: JSON values
    try:
        config = bounded_json.read(file)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{file}: cannot be read ({error}); a model's directory has a config.json, which says what it is"
        ) from error
    if not isinstance(config, dict):
        raise LoadError(f"{file}: is not a JSON object; bring the model again")
    return config


def _labels(config: dict[str, Any]) -> int:  # Any: JSON values
    """
    How many labels there are; where neither key is written, transformers takes 2 (``PretrainedConfig.num_labels``).
    """
    return len(config.get("id2label") or ()) or int(config.get("num_labels", 2))
