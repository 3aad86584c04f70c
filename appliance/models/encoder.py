"""The encoder class: a model that embeds, reranks or classifies, which vLLM runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from appliance.config.engine import EngineConfig
from appliance.config.models import EncoderConfig
from appliance.core.model import FrontEnd, ModelRequest, Operation
from appliance.engines.vllm.engine_args import EngineSpec, Pooler
from appliance.models.encoder_task import Task, TaskChoice, choose
from appliance.models.vllm_model import VllmModel

log: structlog.stdlib.BoundLogger = structlog.get_logger()


_PROOFS: Mapping[Task, tuple[Operation, Mapping[str, Any]]] = {  # Any: JSON values
    Task.EMBED: (Operation.EMBEDDING, {"input": "Hello"}),
    Task.RERANK: (Operation.RERANK, {"query": "Hello", "documents": ["Hello"]}),
    Task.CLASSIFY: (Operation.CLASSIFICATION, {"input": "Hello"}),
    Task.TOKEN_CLASSIFY: (Operation.CLASSIFICATION, {"input": "Hello"}),
}

_TEXTS = {Operation.POOLING, Operation.TOKENIZE, Operation.DETOKENIZE}

_OPERATIONS: Mapping[Task, frozenset[Operation]] = {
    Task.EMBED: frozenset({Operation.EMBEDDING, Operation.RERANK, Operation.SCORE} | _TEXTS),
    Task.RERANK: frozenset({Operation.RERANK, Operation.SCORE, Operation.CLASSIFICATION} | _TEXTS),
    Task.CLASSIFY: frozenset({Operation.CLASSIFICATION} | _TEXTS),
    Task.TOKEN_CLASSIFY: frozenset({Operation.CLASSIFICATION} | _TEXTS),
}


class EncoderModel(VllmModel):
    """
    An encoder in a vLLM engine; what it can be asked depends on its task, which may only show when the bytes are here.
    """

    def __init__(self, config: EncoderConfig, engine: EngineConfig, front_end: FrontEnd) -> None:
        super().__init__(config, front_end)
        self._config = config
        self._settings = engine
        self._choice: TaskChoice | None = None

    @property
    def operations(self) -> frozenset[Operation]:
        """What it can be asked; while its task is unknown, what any encoder can."""
        task = self._choice.task if self._choice else self._config.task
        return _OPERATIONS[Task(task)] if task else frozenset().union(*_OPERATIONS.values())

    @property
    def warmup_request(self) -> ModelRequest:
        """The smallest call for its task."""
        task = self._choice.task if self._choice else Task.EMBED
        operation, body = _PROOFS[task]
        return ModelRequest(operation, json.dumps({"model": self._config.name, **body}).encode())

    def setup(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        config = self._config
        self._choice = choice = choose(Task(config.task) if config.task else None, artifacts["model"])
        log.info("task.chosen", model=config.name, task=choice.task, source=choice.source)
        return EngineSpec(
            names=(config.name, *config.aliases),
            artifact=artifacts["model"],
            layout=self.resolve_layout(artifacts["model"]),
            engine=self._settings,
            allow_pickle=config.allow_pickle,
            pooler=Pooler(
                task="classify" if choice.task is Task.RERANK else choice.task.value,
                pooling=config.pooling,
                normalize=config.normalize,
                dimensions=config.dimensions,
            ),
        )

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        if self._choice is None:
            return super().describe()
        facts = {"task": self._choice.task, "task_source": self._choice.source, **super().describe()}
        if self._choice.task in {Task.CLASSIFY, Task.TOKEN_CLASSIFY}:
            return {**facts, "labels": self.running.labels}
        size = self._config.dimensions or self.running.embedding_size if self._choice.task is Task.EMBED else None
        return facts if size is None else {**facts, "dimensions": size}
