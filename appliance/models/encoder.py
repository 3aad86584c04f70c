"""The model class `encoder`: a model in a vLLM engine that embeds, reranks or classifies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from appliance.config.engine import EngineConfig
from appliance.config.models import EncoderConfig
from appliance.core.errors import LoadError
from appliance.core.model import FrontEnd, ModelRequest, Operation
from appliance.engines.vllm.engine_args import EngineSpec, Pooler
from appliance.models.vllm_model import VllmModel
from appliance.storage import bounded_json

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Task(StrEnum):
    """What an encoder was trained for."""

    EMBED = "embed"
    RERANK = "rerank"
    CLASSIFY = "classify"
    TOKEN_CLASSIFY = "token_classify"  # noqa: S105 - tokens of text


_OPERATIONS: Mapping[Task, frozenset[Operation]] = {
    Task.EMBED: frozenset({Operation.EMBEDDING, Operation.RERANK, Operation.SCORE, Operation.POOLING}),
    Task.RERANK: frozenset({Operation.RERANK, Operation.SCORE, Operation.CLASSIFICATION, Operation.POOLING}),
    Task.CLASSIFY: frozenset({Operation.CLASSIFICATION, Operation.POOLING}),
    Task.TOKEN_CLASSIFY: frozenset({Operation.CLASSIFICATION, Operation.POOLING}),
}


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """A task, and where it comes from."""

    task: Task
    source: str


class EncoderModel(VllmModel[EncoderConfig]):
    """An encoder; its operations depend on its task, which may be unknown until its files are here."""

    def __init__(self, config: EncoderConfig, engine_config: EngineConfig, front_end: FrontEnd) -> None:
        super().__init__(config, engine_config, front_end)
        self._choice: TaskChoice | None = None
        self._prompts: Mapping[str, str] = {}

    @property
    def operations(self) -> frozenset[Operation]:
        """Those of its task; while that is unknown, those of all tasks."""
        return operations_of(self._choice.task if self._choice else self._config.task) | self.tokenizer_operations

    @property
    def warmup_request(self) -> ModelRequest:
        return warmup(self._config.name, self._choice)

    def engine_spec(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        config = self._config
        self._choice = choice = choose_task(config.task, artifacts["model"])
        self._prompts = read_prompts(artifacts["model"])
        log.info("task.chosen", model=config.name, task=choice.task, source=choice.source)
        task = "classify" if choice.task is Task.RERANK else choice.task.value
        pooler = Pooler(task, config.pooling, config.normalize, config.dimensions)
        return replace(super().engine_spec(artifacts), pooler=pooler)

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        if self._choice is None:
            return super().describe()
        facts = {"task": self._choice.task, "task_source": self._choice.source, **super().describe()}
        if self._choice.task in {Task.CLASSIFY, Task.TOKEN_CLASSIFY}:
            return {**facts, "labels": self.engine.labels}
        if self._choice.task is not Task.EMBED:
            return facts
        if self.engine.is_sparse:
            return {**facts, "sparse": True}
        size = self._config.dimensions or self.engine.embedding_size
        prompts = {"prompts": self._prompts} if self._prompts else {}
        return facts if size is None else {**facts, "dimensions": size, **prompts}


def operations_of(task: str | None) -> frozenset[Operation]:
    """Return the operations of a task; those of all tasks while it is unknown."""
    return _OPERATIONS[Task(task)] if task else frozenset().union(*_OPERATIONS.values())


def warmup(name: str, choice: TaskChoice | None) -> ModelRequest:
    """Return the warm-up request of an encoder with a task; None is to embed."""
    operation = Operation.CLASSIFICATION
    body: dict[str, Any] = {"input": "Hello"}
    match choice.task if choice else Task.EMBED:
        case Task.EMBED:
            operation = Operation.EMBEDDING
        case Task.RERANK:
            operation, body = Operation.RERANK, {"query": "Hello", "documents": ["Hello"]}
    return ModelRequest(operation, json.dumps({"model": name, **body}).encode())


def read_prompts(artifact: Path) -> Mapping[str, str]:
    """Return the texts that a model of Sentence Transformers wants before texts, by name; {} if it has none.

    Source: https://sbert.net/docs/sentence_transformer/usage/usage.html#prompt-templates
    """
    try:
        config = bounded_json.read(artifact / "config_sentence_transformers.json")
    except (OSError, ValueError):
        # As for vLLM, a file that cannot be read has no prompts.
        return {}
    prompts = config.get("prompts") if isinstance(config, dict) else None
    return {name: text for name, text in (prompts or {}).items() if isinstance(text, str) and text}


def choose_task(task: str | None, artifact: Path) -> TaskChoice:
    """Return the config's task, or if it has none, the one of the model in the directory `artifact`.

    A model with a classification head classifies, with a single label it reranks; any other model embeds.

    Raises:
        LoadError: the model's `config.json` cannot be read.
    """
    if task is not None:
        return TaskChoice(Task(task), "the config")
    file = artifact / "config.json"
    try:
        model_config = bounded_json.read(file)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{file}: cannot be read ({error}); a model's directory has a config.json, which says what it is"
        ) from error
    if not isinstance(model_config, dict):
        raise LoadError(f"{file}: is not a JSON object; fetch the model again")
    architecture = next(iter(model_config.get("architectures") or ()), "none")
    source = f"config.json: architecture {architecture}"
    if architecture.endswith("ForTokenClassification"):
        return TaskChoice(Task.TOKEN_CLASSIFY, source)
    if not architecture.endswith("ForSequenceClassification"):
        return TaskChoice(Task.EMBED, source)
    # Without either key, transformers assumes 2 labels (`PretrainedConfig.num_labels`).
    labels = len(model_config.get("id2label") or ()) or int(model_config.get("num_labels", 2))
    source = f"{source}, {labels} label{'s'[: labels != 1]}"
    return TaskChoice(Task.RERANK if labels == 1 else Task.CLASSIFY, source)
