"""The model class `encoder` with `engine.backend: onnx`: a model in ONNX Runtime that embeds, reranks or classifies."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from appliance.config.engine import OnnxEncoderConfig
from appliance.config.models import EncoderConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import EngineDeadError, LoadError, MissingExtraError
from appliance.core.model import FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.core.system import memory_bytes, usable_cores
from appliance.limits.queue import require_decodable
from appliance.models.encoder import Task, TaskChoice, choose_task, operations_of, read_prompts, warmup
from appliance.models.vllm_model import TOKENIZER_OPERATIONS
from appliance.storage.manifest import list_files
from appliance.storage.selection import onnx_file

if TYPE_CHECKING:
    from appliance.engines.onnx.batcher import Batcher
    from appliance.engines.onnx.encoder import Encoder
    from appliance.engines.onnx.handlers import Handlers

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Texts that wait for the thread that computes; the others wait in the model's queue.
_MAX_CONCURRENT = 128


class OnnxEncoderModel:
    """An encoder in ONNX Runtime; its operations depend on its task, which may be unknown until its files are here."""

    max_concurrent = _MAX_CONCURRENT

    def __init__(self, config: EncoderConfig, engine: OnnxEncoderConfig, front_end: FrontEnd) -> None:
        self._config, self._engine, self._front_end = config, engine, front_end
        self._choice: TaskChoice | None = None
        self._prompts: Mapping[str, str] = {}
        self._encoder: Encoder | None = None
        self._batcher: Batcher | None = None
        self._handlers: Handlers | None = None
        self._dimensions: int | None = None
        self._weight_bytes: int | None = None

    @property
    def operations(self) -> frozenset[Operation]:
        """Those of its task; while that is unknown, those of all tasks."""
        return operations_of(self._choice.task if self._choice else self._config.task) | TOKENIZER_OPERATIONS

    @property
    def warmup_request(self) -> ModelRequest:
        return warmup(self._config.name, self._choice)

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        for package in ("onnxruntime", "tokenizers"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "onnx", f"engine.backend: onnx of the model {self._config.name!r}")
        from appliance.engines.onnx.batcher import Batcher
        from appliance.engines.onnx.handlers import Handlers

        self._encoder = encoder = await in_thread(self._load, artifacts["model"])
        self._batcher = Batcher(encoder, self._config.name)
        self._handlers = Handlers(self._config.name, encoder, self._batcher)

    async def check(self) -> None:
        if self._batcher is None:
            raise EngineDeadError("the engine is not running")
        self._batcher.check()

    async def handle(self, request: ModelRequest) -> ModelResponse:
        if self._handlers is None:
            raise EngineDeadError("the engine is not running")
        await require_decodable(request.body)
        return await self._handlers.handle(request)

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        if self._choice is None or self._encoder is None:
            return {}
        files = self._encoder.files
        facts = {"task": self._choice.task, "task_source": self._choice.source, "max_model_len": files.max_length}
        if self._choice.task is Task.CLASSIFY:
            return {**facts, "labels": files.labels}
        if self._choice.task is not Task.EMBED:
            return facts
        prompts = {"prompts": self._prompts} if self._prompts else {}
        return {**facts, "dimensions": files.dimensions or self._dimensions, **prompts}

    def measured(self) -> Mapping[str, float]:
        """See `ReportsMemory.measured`: the growth of this process by the load."""
        return {} if self._weight_bytes is None else {"weight_bytes": self._weight_bytes}

    async def close(self) -> None:
        batcher, self._batcher, self._handlers = self._batcher, None, None
        if batcher is not None:
            batcher.close()

    def _load(self, directory: Path) -> Encoder:
        from appliance.engines.onnx.encoder import Encoder
        from appliance.engines.onnx.model_files import ModelFiles

        config, engine = self._config, self._engine
        choice = choose_task(config.task, directory)
        if choice.task is Task.TOKEN_CLASSIFY:
            raise LoadError(f"the task is {choice.task} ({choice.source}); must be computed with engine.backend: vllm")
        log.info("task.chosen", model=config.name, task=choice.task, source=choice.source)
        names = list_files(directory, read_all=False).files
        file = directory / onnx_file(str(directory), names, engine)
        files = ModelFiles.read(directory, config, engine.max_model_len, embeds=choice.task is Task.EMBED)
        threads = engine.threads or max(1, usable_cores() // self._front_end.count)
        before = memory_bytes()
        encoder = Encoder(directory, file, files, threads)
        self._weight_bytes = max(0, memory_bytes() - before)
        self._dimensions = encoder.compute([([0], [0])]).shape[1]
        self._choice, self._prompts = choice, read_prompts(directory)
        return encoder
